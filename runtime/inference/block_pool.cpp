#include "runtime/inference/block_pool.h"

#include <algorithm>
#include <unordered_set>
#include <utility>

#include "runtime/base/invariant.h"

namespace mainstay {

namespace {

constexpr size_t index_reserve_max = 4 << 20;

}  // namespace

const char* to_string(KvTier tier) {
    switch (tier) {
        case KvTier::device: return "device";
        case KvTier::host: return "host";
        case KvTier::disk: return "disk";
    }
    return "?";
}

PrefixMatch::OnDevice PrefixMatch::of(DeviceId device) const {
    for (const OnDevice& on : devices)
        if (on.device == device) return on;
    return {device, reach, 0, 0};
}

uint32_t PrefixMatch::disk_loads(const OnDevice& on) const { return disk_before[on.reach] - on.disk_only; }

BlockPool::BlockPool(BlockPoolConfig config) : config_(config) {
    INVARIANT(config_.block_tokens > 0, "a block holds tokens");
    if (config_.host_blocks_max == 0) config_.disk = false;  // what is on disk came through the host's memory
}

// --- devices and tables ---------------------------------------------------------------------------------------------

void BlockPool::add_device(DeviceId device, uint32_t block_count) {
    INVARIANT(!has_device(device), "a device is added once");
    if (device.value >= devices_.size()) devices_.resize(device.value + 1);
    DeviceState& state = devices_[device.value];
    state = DeviceState{};
    state.present = true;
    state.blocks.resize(block_count);
    // Room for the names at once: growing the index in the middle of a step would be felt.
    size_t names = config_.host_blocks_max;
    for (const DeviceState& other : devices_) names += other.blocks.size();
    index_.reserve(std::min(names, index_reserve_max));
    for (BlockId block = BlockId(block_count) - 1; block > block_null; --block) state.free.push_back(block);
}

void BlockPool::remove_device(DeviceId device) {
    if (!has_device(device)) return;
    for (uint32_t i = 0; i < tables_.size(); ++i)
        if (tables_[i].live && tables_[i].device == device) free_table(TableId{i});
    DeviceState& state = devices_[device.value];
    while (!state.in_load.empty()) end_load(device, state.in_load.begin()->first);
    for (BlockId block = 1; size_t(block) < state.blocks.size(); ++block)
        if (state.blocks[size_t(block)].entry != none) unname(device, block);
    for (uint32_t i = 0; i < entries_.size(); ++i) {
        Entry& entry = entries_[i];
        if (!entry.live || entry.host != HostState::saving || entry.saving_from != device) continue;
        entry.host = HostState::absent;
        --host_blocks_;
        erase_if_unused(i);
    }
    state = DeviceState{};
}

uint32_t BlockPool::free_blocks(DeviceId device) const {
    return has_device(device) ? uint32_t(devices_[device.value].free.size()) : 0;
}

uint32_t BlockPool::evictable_blocks(DeviceId device) const {
    return has_device(device) ? devices_[device.value].cached : 0;
}

uint32_t BlockPool::total_blocks(DeviceId device) const {
    return has_device(device) ? uint32_t(devices_[device.value].blocks.size()) - 1 : 0;
}

BlockPool::Table& BlockPool::at(TableId table) {
    INVARIANT(table.value < tables_.size() && tables_[table.value].live, "a table that is open");
    return tables_[table.value];
}

const BlockPool::Table& BlockPool::at(TableId table) const { return const_cast<BlockPool*>(this)->at(table); }

TableId BlockPool::new_table(DeviceId device) {
    INVARIANT(has_device(device), "a table is of a device that is there");
    uint32_t index = uint32_t(tables_.size());
    if (free_tables_.empty()) {
        tables_.emplace_back();
    } else {
        index = free_tables_.back();
        free_tables_.pop_back();
    }
    Table& table = tables_[index];
    table.blocks.clear();
    table.live = true;
    table.device = device;
    table.named = table.valid = table.pending = 0;
    return TableId{index};
}

void BlockPool::free_table(TableId table) {
    tables_[table.value].live = false;
    free_tables_.push_back(table.value);
}

// --- names and who holds them ---------------------------------------------------------------------------------------

uint32_t BlockPool::find(const KvHash& hash) const {
    const auto found = index_.find(hash);
    return found == index_.end() ? none : found->second;
}

uint32_t BlockPool::find_or_make(const KvHash& hash, uint32_t tokens, TenantId tenant) {
    const auto [slot, made] = index_.try_emplace(hash, 0);
    if (!made) return slot->second;
    uint32_t index = uint32_t(entries_.size());
    if (free_entries_.empty()) {
        entries_.emplace_back();
    } else {
        index = free_entries_.back();
        free_entries_.pop_back();
        entries_[index] = Entry{};
    }
    Entry& entry = entries_[index];
    entry.hash = hash;
    entry.tokens = tokens;
    entry.tenant = tenant;
    entry.live = true;
    slot->second = index;
    return index;
}

void BlockPool::erase_if_unused(uint32_t index) {
    Entry& entry = entries_[index];
    if (!entry.live || !entry.copies.empty() || entry.host != HostState::absent || entry.disk != DiskState::absent)
        return;
    while (entry.holder_count > 0) unhold(index, entry.holder_count - 1u);
    if (entry.definition) definitions_.erase(index);
    index_.erase(entry.hash);
    entry.live = false;
    free_entries_.push_back(index);
}

BlockId BlockPool::copy_on(const Entry& entry, DeviceId device) const {
    for (const Copy& copy : entry.copies)
        if (copy.device == device) return copy.block;
    return block_none;
}

/// Remembers that the session has this content. Of many holders the newest few are enough: as long as one of them
/// exists, the content is one of a session that exists.
void BlockPool::hold(uint32_t index, const SessionKey& session) {
    Entry& entry = entries_[index];
    if (entry.definition) return;
    const auto [slot, made] = session_index_.try_emplace(session, 0);
    if (made) {
        if (free_sessions_.empty()) {
            slot->second = uint32_t(sessions_.size());
            sessions_.emplace_back();
        } else {
            slot->second = free_sessions_.back();
            free_sessions_.pop_back();
        }
        sessions_[slot->second].key = session;
    }
    const uint32_t who = slot->second;
    for (size_t i = 0; i < entry.holder_count; ++i)
        if (entry.holders[i].session == who) return;
    if (entry.holder_count == holders_max) unhold(index, 0);
    Holder& holder = entry.holders[entry.holder_count];
    holder = {who, uint32_t(sessions_[who].held.size())};
    sessions_[who].held.push_back({index, entry.holder_count});
    ++entry.holder_count;
}

void BlockPool::define(uint32_t index) {
    entries_[index].definition = true;
    definitions_.insert(index);
}

void BlockPool::hold(uint32_t index, const BlockName& block) {
    if (block.owner.session.valid())
        hold(index, block.owner);
    else
        define(index);
}

void BlockPool::unhold(uint32_t index, size_t which) {
    Entry& entry = entries_[index];
    const Holder gone = entry.holders[which];
    auto& held = sessions_[gone.session].held;
    const HeldEntry moved = held.back();
    held[gone.place] = moved;
    held.pop_back();
    if (gone.place < held.size()) entries_[moved.entry].holders[moved.holder].place = gone.place;
    if (held.empty()) {
        session_index_.erase(sessions_[gone.session].key);
        free_sessions_.push_back(gone.session);
    }
    for (size_t i = which + 1; i < entry.holder_count; ++i) {
        const Holder& later = entry.holders[i - 1] = entry.holders[i];
        sessions_[later.session].held[later.place].holder = uint8_t(i - 1);
    }
    --entry.holder_count;
}

SessionKey BlockPool::owner_of(const Entry& entry) const {
    if (entry.definition || entry.holder_count == 0) return {entry.tenant, SessionId{}};
    return sessions_[entry.holders[entry.holder_count - 1].session].key;
}

// --- blocks of a device ---------------------------------------------------------------------------------------------

void BlockPool::unlink_cached(DeviceState& device, BlockId id) {
    Block& block = device.blocks[size_t(id)];
    INVARIANT(block.cached, "a block in the list of cached ones");
    (block.before == block_none ? device.oldest : device.blocks[size_t(block.before)].after) = block.after;
    (block.after == block_none ? device.newest : device.blocks[size_t(block.after)].before) = block.before;
    block.before = block.after = block_none;
    block.cached = false;
    --device.cached;
}

/// The block loses its name; its content may be overwritten by later work.
void BlockPool::unname(DeviceId device, BlockId id) {
    Block& block = block_at(device, id);
    const uint32_t index = block.entry;
    std::erase_if(entries_[index].copies, [&](const Copy& copy) { return copy.device == device; });
    block.entry = none;
    block.save_queued = false;
    erase_if_unused(index);
}

/// A block of nobody with one reference, or block_none.
BlockId BlockPool::take_block(DeviceId device) {
    DeviceState& state = devices_[device.value];
    BlockId id = block_none;
    if (!state.free.empty()) {
        id = state.free.back();
        state.free.pop_back();
    } else if (state.oldest != block_none) {
        id = state.oldest;
        Block& block = state.blocks[size_t(id)];
        // Not saved yet: it is now, since whatever reuses the block comes later than the save.
        if (const BlockSave save{id, entries_[block.entry].tokens, entries_[block.entry].hash};
            block.save_queued && start_save(device, save))
            state.saves_urgent.push_back(save);
        unlink_cached(state, id);
        if (block.loading) end_load(device, id);
        unname(device, id);
        ++stats_.evicted_device;
    } else {
        return block_none;
    }
    state.blocks[size_t(id)].refs = 1;
    return id;
}

void BlockPool::add_ref(DeviceId device, BlockId id) {
    Block& block = block_at(device, id);
    if (block.refs++ == 0) unlink_cached(devices_[device.value], id);
}

void BlockPool::release(DeviceId device, BlockId id) {
    DeviceState& state = devices_[device.value];
    Block& block = state.blocks[size_t(id)];
    INVARIANT(block.refs > 0, "a block that is released is held");
    if (--block.refs > 0) return;
    if (block.entry == none) {
        if (block.loading) end_load(device, id);
        state.free.push_back(id);
        return;
    }
    block.before = state.newest;
    block.after = block_none;
    (state.newest == block_none ? state.oldest : state.blocks[size_t(state.newest)].after) = id;
    state.newest = id;
    block.cached = true;
    ++state.cached;
}

// --- loads ----------------------------------------------------------------------------------------------------------

void BlockPool::wait_for(DeviceId device, BlockId block, uint32_t table) {
    devices_[device.value].in_load.at(block).tables.push_back(table);
    ++tables_[table].pending;
}

void BlockPool::start_load(DeviceId device, BlockId block, uint32_t index, KvTier from) {
    DeviceState& state = devices_[device.value];
    Entry& entry = entries_[index];
    state.loads.push_back({block, entry.tokens, entry.hash, from});
    state.in_load[block] = {entry.hash, from == KvTier::host, {}};
    state.blocks[size_t(block)].loading = true;
    if (from == KvTier::host && entry.load_pins++ == 0) host_unlink(index);
}

bool BlockPool::prefetch(DeviceId device, const KvHash& hash) {
    if (!has_device(device)) return false;
    DeviceState& state = devices_[device.value];
    const uint32_t index = find(hash);
    if (index == none || state.free.empty() || copy_on(entries_[index], device) != block_none) return false;
    const bool host = entries_[index].host == HostState::ready, disk = entries_[index].disk == DiskState::ready;
    if (!host && !disk) return false;
    const BlockId block = take_block(device);
    block_at(device, block).entry = index;
    entries_[index].copies.push_back({device, block});
    start_load(device, block, index, host ? KvTier::host : KvTier::disk);
    release(device, block);
    return true;
}

/// Nobody waits for it any more, or it has ended.
void BlockPool::end_load(DeviceId device, BlockId block) {
    DeviceState& state = devices_[device.value];
    const auto found = state.in_load.find(block);
    if (found->second.pins_host) {
        const uint32_t index = find(found->second.hash);
        if (index != none && entries_[index].load_pins > 0 && --entries_[index].load_pins == 0 &&
            entries_[index].host == HostState::ready)
            host_link(index);
    }
    for (const uint32_t table : found->second.tables) --tables_[table].pending;
    state.in_load.erase(found);
    state.blocks[size_t(block)].loading = false;
}

void BlockPool::truncate(uint32_t index, size_t blocks) {
    Table& table = tables_[index];
    DeviceState& state = devices_[table.device.value];
    while (table.blocks.size() > blocks) {
        const BlockId id = table.blocks.back();
        table.blocks.pop_back();
        if (const auto load = state.in_load.find(id); load != state.in_load.end())
            table.pending -= uint32_t(std::erase(load->second.tables, index));
        release(table.device, id);
    }
    table.named = std::min(table.named, uint32_t(blocks));
    table.valid = std::min(table.valid, uint32_t(blocks) * config_.block_tokens);
}

void BlockPool::loaded(DeviceId device, BlockId block, const KvHash& hash, KvTier from, bool ok) {
    if (!has_device(device)) return;
    DeviceState& state = devices_[device.value];
    const auto found = state.in_load.find(block);
    const bool expected = found != state.in_load.end() && found->second.hash == hash;
    ok ? ++stats_.loaded : ++stats_.load_failed;
    if (ok) {
        if (expected) end_load(device, block);
        return;
    }
    if (expected) {
        // The tables go on with what lies before; the block loses its name with its last reference.
        const std::vector<uint32_t> tables = found->second.tables;
        end_load(device, block);
        for (const uint32_t index : tables) {
            const auto& blocks = tables_[index].blocks;
            truncate(index, size_t(std::find(blocks.begin(), blocks.end(), block) - blocks.begin()));
        }
        if (block_at(device, block).entry != none) {
            INVARIANT(block_at(device, block).refs == 0, "who used a block that was being loaded waited for it");
            unlink_cached(state, block);
            unname(device, block);
            state.free.push_back(block);
        }
    }
    const uint32_t index = find(hash);
    if (index == none) return;
    // Damaged once, damaged always: never offered again.
    if (from == KvTier::host && entries_[index].host == HostState::ready) drop_host(index, false);
    if (from == KvTier::disk) drop_disk(index);
    erase_if_unused(index);
}

// --- prefixes -------------------------------------------------------------------------------------------------------

void BlockPool::match(const KvChain& chain, uint32_t blocks_max, PrefixMatch& out) const {
    out.devices.clear();
    out.disk_before.assign(1, 0);
    out.reach = 0;
    match_slot_.assign(devices_.size(), none);
    const uint32_t count = std::min<uint32_t>(blocks_max, uint32_t(chain.blocks.size()));
    bool others_alive = true;
    // A device is alive while it has, or can load, every block so far; `reach` of one that is not tells where it ended.
    std::vector<bool> alive;
    size_t alive_count = 0;
    uint32_t i = 0;
    for (; i < count && (others_alive || alive_count > 0); ++i) {
        const uint32_t index = find(chain.blocks[i]);
        if (index == none) break;
        const Entry& entry = entries_[index];
        const bool host = entry.host == HostState::ready, disk = entry.disk == DiskState::ready;
        for (const Copy& copy : entry.copies) {
            uint32_t& slot = match_slot_[copy.device.value];
            if (slot == none) {
                if (!others_alive) continue;
                slot = uint32_t(out.devices.size());
                out.devices.push_back({copy.device, none, 0, 0});
                alive.push_back(true);
                ++alive_count;
            }
            if (!alive[slot]) continue;
            ++out.devices[slot].hits;
            out.devices[slot].disk_only += !host && disk;
        }
        if (!host && !disk) {
            if (others_alive) out.reach = i;
            others_alive = false;
            for (size_t d = 0; d < alive.size(); ++d) {
                if (!alive[d] || copy_on(entry, out.devices[d].device) != block_none) continue;
                alive[d] = false;
                --alive_count;
                out.devices[d].reach = i;
            }
        }
        out.disk_before.push_back(out.disk_before.back() + (!host && disk));
    }
    if (others_alive) out.reach = i;
    for (auto& on : out.devices) on.reach = std::min(on.reach, i);
}

BlockPool::Acquired BlockPool::acquire(DeviceId device, const SessionKey& session, const KvChain& chain,
                                       std::span<const TokenId> tokens, bool load_host, bool load_disk) {
    Acquired out;
    out.table = new_table(device);
    const uint32_t t = out.table.value;
    const size_t limit =
        tokens.empty() ? 0 : std::min(chain.blocks.size(), (tokens.size() - 1) / size_t(config_.block_tokens));
    // First what is on the device, so that making room for loads cannot evict it.
    std::vector<uint32_t> found;
    for (size_t i = 0; i < limit; ++i) {
        const uint32_t index = find(chain.blocks[i]);
        if (index == none) break;
        const Entry& entry = entries_[index];
        const BlockId block = copy_on(entry, device);
        if (block == block_none && !(load_host && entry.host == HostState::ready) &&
            !(load_disk && entry.disk == DiskState::ready))
            break;
        if (block != block_none) add_ref(device, block);
        tables_[t].blocks.push_back(block);
        found.push_back(index);
    }
    for (size_t i = 0; i < found.size(); ++i) {
        const uint32_t index = found[i];
        BlockId block = tables_[t].blocks[i];
        if (block != block_none) {
            if (block_at(device, block).loading) wait_for(device, block, t);
            out.device_tokens += config_.block_tokens;
            ++stats_.device_hit_blocks;
        } else {
            block = take_block(device);
            // Evicting may have cost an entry of this very chain its last copy.
            const bool there = entries_[index].live && entries_[index].hash == chain.blocks[i];
            const bool host = there && load_host && entries_[index].host == HostState::ready;
            const bool disk = there && load_disk && entries_[index].disk == DiskState::ready;
            if (block == block_none || (!host && !disk)) {
                if (block != block_none) release(device, block);
                for (size_t k = i; k < found.size(); ++k)
                    if (tables_[t].blocks[k] != block_none) release(device, tables_[t].blocks[k]);
                tables_[t].blocks.resize(i);
                break;
            }
            tables_[t].blocks[i] = block;
            block_at(device, block).entry = index;
            entries_[index].copies.push_back({device, block});
            start_load(device, block, index, host ? KvTier::host : KvTier::disk);
            wait_for(device, block, t);
            (host ? out.host_tokens : out.disk_tokens) += config_.block_tokens;
            ++(host ? stats_.host_hit_blocks : stats_.disk_hit_blocks);
        }
        hold(index, session);
        host_touch(index);
    }
    Table& table = tables_[t];
    table.named = uint32_t(table.blocks.size());
    table.valid = table.named * config_.block_tokens;
    acquire_tail(out, chain, tokens, load_host, load_disk);
    out.tokens = tables_[t].valid;
    out.loads = tables_[t].pending;
    return out;
}

/// What the session computed of the block after the last full one: taken over, because it will be written to.
void BlockPool::acquire_tail(Acquired& out, const KvChain& chain, std::span<const TokenId> tokens, bool load_host,
                             bool load_disk) {
    Table& table = tables_[out.table.value];
    const DeviceId device = table.device;
    if (tokens.size() <= table.valid + 1) return;
    const std::span<const TokenId> rest = tokens.subspan(table.valid, tokens.size() - 1 - table.valid);
    for (size_t n = std::min<size_t>(rest.size(), config_.block_tokens - 1); n > 0; --n) {
        const uint32_t index = find(kv_next(chain.before(table.named), rest.first(n)));
        if (index == none || entries_[index].tokens != n) continue;
        Entry& entry = entries_[index];
        BlockId block = copy_on(entry, device);
        if (block != block_none) {
            INVARIANT(block_at(device, block).refs == 0, "a tail has no table while it has a name");
            add_ref(device, block);
            const bool only_here = entry.holder_count <= 1;
            const KvHash hash = entry.hash;
            unname(device, block);
            // It grows now; its shorter form elsewhere would only take up room.
            if (const uint32_t left = find(hash); left != none && only_here && entries_[left].load_pins == 0) {
                drop_host(left, false);
                drop_disk(left);
                erase_if_unused(left);
            }
            out.device_tokens += uint32_t(n);
        } else {
            const bool host = load_host && entry.host == HostState::ready;
            const bool disk = load_disk && entry.disk == DiskState::ready;
            if (!host && !disk) continue;
            block = take_block(device);
            if (block == block_none) return;
            if (!entries_[index].live) {
                release(device, block);
                return;
            }
            start_load(device, block, index, host ? KvTier::host : KvTier::disk);
            wait_for(device, block, out.table.value);
            (host ? out.host_tokens : out.disk_tokens) += uint32_t(n);
        }
        table.blocks.push_back(block);
        table.valid += uint32_t(n);
        return;
    }
}

// --- what a table does ----------------------------------------------------------------------------------------------

uint32_t BlockPool::blocks_missing(TableId id, uint32_t tokens) const {
    const size_t wanted = (size_t(tokens) + config_.block_tokens - 1) / config_.block_tokens;
    return uint32_t(wanted - std::min(wanted, at(id).blocks.size()));
}

bool BlockPool::reserve(TableId id, uint32_t tokens) {
    uint32_t missing = blocks_missing(id, tokens);
    Table& table = at(id);
    if (missing > available_blocks(table.device)) return false;
    for (; missing > 0; --missing) table.blocks.push_back(take_block(table.device));
    return true;
}

void BlockPool::name(uint32_t t, size_t at, const KvHash& hash, uint32_t tokens, const SessionKey& session,
                     bool definition) {
    Table& table = tables_[t];
    const uint32_t index = find_or_make(hash, tokens, session.tenant);
    if (definition) define(index);
    hold(index, session);
    const BlockId own = table.blocks[at];
    const BlockId other = copy_on(entries_[index], table.device);
    if (other != block_none) {
        // Two sequences computed the same at the same time; equal names are equal bits.
        if (block_at(table.device, other).loading) return;
        add_ref(table.device, other);
        table.blocks[at] = other;
        release(table.device, own);
        ++stats_.shared_after_all;
        return;
    }
    block_at(table.device, own).entry = index;
    entries_[index].copies.push_back({table.device, own});
    queue_save(table.device, own);
}

void BlockPool::computed(TableId id, uint32_t valid, const KvChain& chain, const SessionKey& session,
                         uint32_t definition_tokens) {
    Table& table = at(id);
    INVARIANT(table.pending == 0, "nothing is computed on top of what is not loaded");
    INVARIANT(valid >= table.valid && valid <= table.blocks.size() * config_.block_tokens, "computed within its room");
    table.valid = valid;
    const uint32_t full = valid / config_.block_tokens;
    INVARIANT(chain.blocks.size() >= full, "the chain names what is full");
    for (; table.named < full; ++table.named)
        name(id.value, table.named, chain.blocks[table.named], config_.block_tokens, session,
             (table.named + 1) * config_.block_tokens <= definition_tokens);
}

std::optional<TableId> BlockPool::fork(TableId id) {
    INVARIANT(at(id).pending == 0, "a table is forked when its loads have ended");
    const DeviceId device = at(id).device;
    const bool tail = at(id).valid > at(id).named * config_.block_tokens;
    const BlockId own = tail ? take_block(device) : block_none;
    if (tail && own == block_none) return std::nullopt;
    const TableId made = new_table(device);
    const Table& from = at(id);
    Table& to = at(made);
    for (size_t i = 0; i < from.named; ++i) {
        add_ref(device, from.blocks[i]);
        to.blocks.push_back(from.blocks[i]);
    }
    if (tail) {
        to.blocks.push_back(own);
        devices_[device.value].copies.push_back({from.blocks[from.named], own});
    }
    to.named = from.named;
    to.valid = from.valid;
    return made;
}

TableId BlockPool::pin(DeviceId device, const KvChain& chain) {
    const TableId made = new_table(device);
    for (const KvHash& hash : chain.blocks) {
        const uint32_t index = find(hash);
        const BlockId block = index == none ? block_none : copy_on(entries_[index], device);
        if (block == block_none || block_at(device, block).loading) break;
        add_ref(device, block);
        at(made).blocks.push_back(block);
    }
    at(made).named = uint32_t(at(made).blocks.size());
    at(made).valid = at(made).named * config_.block_tokens;
    return made;
}

void BlockPool::close(TableId id, const SessionKey& session, const KvChain& chain, std::span<const TokenId> tokens) {
    Table& table = at(id);
    const uint32_t full = table.named * config_.block_tokens;
    if (table.pending == 0 && table.valid > full) {
        INVARIANT(tokens.size() >= table.valid, "the tokens that a table holds");
        const uint32_t n = table.valid - full;
        name(id.value, table.named, kv_next(chain.before(table.named), tokens.subspan(full, n)), n, session, false);
        // Where the same tail was cached already, name() put it in this one's place; nobody else may write to it while
        // this table is open, and it is closed now.
    }
    drop(id);
}

void BlockPool::drop(TableId id) {
    at(id);
    truncate(id.value, 0);
    free_table(id);
}

// --- tiers ----------------------------------------------------------------------------------------------------------

void BlockPool::host_link(uint32_t index) {
    Entry& entry = entries_[index];
    entry.host_before = host_newest_;
    entry.host_after = none;
    (host_newest_ == none ? host_oldest_ : entries_[host_newest_].host_after) = index;
    host_newest_ = index;
}

void BlockPool::host_unlink(uint32_t index) {
    Entry& entry = entries_[index];
    (entry.host_before == none ? host_oldest_ : entries_[entry.host_before].host_after) = entry.host_after;
    (entry.host_after == none ? host_newest_ : entries_[entry.host_after].host_before) = entry.host_before;
    entry.host_before = entry.host_after = none;
}

void BlockPool::host_touch(uint32_t index) {
    if (entries_[index].host != HostState::ready || entries_[index].load_pins > 0) return;
    host_unlink(index);
    host_link(index);
}

bool BlockPool::make_host_room() {
    while (host_blocks_ >= config_.host_blocks_max) {
        if (host_oldest_ == none) return false;
        const uint32_t index = host_oldest_;
        drop_host(index, true);
        ++stats_.evicted_host;
        erase_if_unused(index);
    }
    return true;
}

void BlockPool::drop_host(uint32_t index, bool store_first) {
    Entry& entry = entries_[index];
    if (entry.host == HostState::absent) return;
    if (entry.host == HostState::ready) {
        if (store_first) store_disk(index);
        if (entry.load_pins == 0) host_unlink(index);
        tier_effects_.push_back({TierEffect::Kind::drop_host, entry.hash, entry.tokens, {}});
    }  // being saved: the bytes are dropped when they come
    entry.load_pins = 0;
    entry.host = HostState::absent;
    --host_blocks_;
}

void BlockPool::store_disk(uint32_t index) {
    Entry& entry = entries_[index];
    if (!config_.disk || entry.disk != DiskState::absent || entry.host != HostState::ready) return;
    tier_effects_.push_back({TierEffect::Kind::store_disk, entry.hash, entry.tokens, owner_of(entry)});
    entry.disk = DiskState::storing;
    ++disk_blocks_;
}

void BlockPool::drop_disk(uint32_t index) {
    Entry& entry = entries_[index];
    if (entry.disk == DiskState::absent) return;
    tier_effects_.push_back({TierEffect::Kind::drop_disk, entry.hash, entry.tokens, {}});
    entry.disk = DiskState::absent;
    --disk_blocks_;
}

void BlockPool::queue_save(DeviceId device, BlockId id) {
    Block& block = block_at(device, id);
    const Entry& entry = entries_[block.entry];
    if (config_.host_blocks_max == 0 || entry.host != HostState::absent || block.save_queued) return;
    block.save_queued = true;
    devices_[device.value].saves.push_back({id, entry.tokens, entry.hash});
}

bool BlockPool::start_save(DeviceId device, const BlockSave& save) {
    const uint32_t index = find(save.hash);
    if (index == none || entries_[index].host != HostState::absent || !make_host_room()) return false;
    Entry& entry = entries_[index];
    entry.host = HostState::saving;
    entry.saving_from = device;
    ++host_blocks_;
    return true;
}

bool BlockPool::has_device_effects(DeviceId device) const {
    if (!has_device(device)) return false;
    const DeviceState& state = devices_[device.value];
    return !state.saves.empty() || !state.saves_urgent.empty() || !state.copies.empty() || !state.loads.empty() ||
           !state.exports.empty();
}

DeviceEffects BlockPool::take_device_effects(DeviceId device) {
    DeviceEffects out;
    if (!has_device(device)) return out;
    DeviceState& state = devices_[device.value];
    out.saves.swap(state.saves_urgent);
    while (!state.saves.empty() && out.saves.size() < config_.saves_per_work_max) {
        const BlockSave save = state.saves.front();
        state.saves.pop_front();
        Block& block = block_at(device, save.block);
        if (!block.save_queued || block.entry == none || entries_[block.entry].hash != save.hash) continue;
        block.save_queued = false;
        if (start_save(device, save)) out.saves.push_back(save);
    }
    while (!state.exports.empty() && out.exports.size() < config_.saves_per_work_max) {
        const uint32_t index = find(state.exports.front());
        const BlockId block = index == none ? block_none : copy_on(entries_[index], device);
        const bool there = block != block_none && !block_at(device, block).loading;
        out.exports.push_back({there ? block : block_none, there ? entries_[index].tokens : 0, state.exports.front()});
        state.exports.pop_front();
    }
    out.copies.swap(state.copies);
    while (!state.loads.empty() && out.loads.size() < config_.loads_per_work_max) {
        const BlockLoad load = state.loads.front();
        state.loads.pop_front();
        // One that nobody waits for any more: its block may be another's by now.
        const auto found = state.in_load.find(load.block);
        if (found != state.in_load.end() && found->second.hash == load.hash) out.loads.push_back(load);
    }
    return out;
}

std::vector<TierEffect> BlockPool::take_tier_effects() { return std::exchange(tier_effects_, {}); }

void BlockPool::saved(DeviceId device, const KvHash& hash, bool ok) {
    ok ? ++stats_.saved : ++stats_.save_failed;
    const uint32_t index = find(hash);
    const bool expected = index != none && entries_[index].host == HostState::saving &&
                          entries_[index].saving_from == device && has_device(device);
    if (!expected) {
        // Nobody wants it any more: its session was deleted, or the device was given up.
        if (ok && (index == none || entries_[index].host == HostState::absent))
            tier_effects_.push_back({TierEffect::Kind::drop_host, hash, 0, {}});
        return;
    }
    entries_[index].host = ok ? HostState::ready : HostState::absent;
    if (ok) {
        host_link(index);
        if (std::exchange(entries_[index].to_disk, false)) store_disk(index);
        return;
    }
    --host_blocks_;
    erase_if_unused(index);
}

void BlockPool::stored_on_disk(const KvHash& hash, bool ok) {
    const uint32_t index = find(hash);
    if (index == none || entries_[index].disk != DiskState::storing) return;
    entries_[index].disk = ok ? DiskState::ready : DiskState::absent;
    disk_blocks_ -= !ok;
    erase_if_unused(index);
}

void BlockPool::lost_on_disk(const KvHash& hash) {
    const uint32_t index = find(hash);
    if (index == none || entries_[index].disk == DiskState::absent) return;
    entries_[index].disk = DiskState::absent;
    --disk_blocks_;
    erase_if_unused(index);
}

bool BlockPool::offer(KvTier tier, const KvHash& hash, uint32_t tokens, const SessionKey& owner) {
    INVARIANT(tier != KvTier::device, "a block is offered to a tier");
    if (tier == KvTier::disk ? !config_.disk : config_.host_blocks_max == 0) return false;
    if (const uint32_t known = find(hash); known != none) {
        const Entry& entry = entries_[known];
        if (tier == KvTier::disk ? entry.disk != DiskState::absent : entry.host != HostState::absent) return false;
    }
    if (tier == KvTier::host && !make_host_room()) return false;
    const uint32_t index = find_or_make(hash, tokens, owner.tenant);
    hold(index, BlockName{hash, tokens, owner});
    if (tier == KvTier::host) {
        entries_[index].host = HostState::ready;
        host_link(index);
        ++host_blocks_;
    } else {
        entries_[index].disk = DiskState::ready;
        ++disk_blocks_;
    }
    return true;
}

void BlockPool::delete_session(const SessionKey& session) {
    const auto found = session_index_.find(session);
    if (found == session_index_.end()) return;
    const std::vector<HeldEntry> held = sessions_[found->second].held;
    const uint32_t who = found->second;
    for (const HeldEntry& one : held) {
        // Erasing an entry moves other holders about, so the place is looked up again.
        Entry& entry = entries_[one.entry];
        for (size_t i = 0; i < entry.holder_count; ++i)
            if (entry.holders[i].session == who) {
                unhold(one.entry, i);
                break;
            }
        // On disk a block is deleted with the session that wrote it, whoever else has it.
        drop_disk(one.entry);
        if (entry.holder_count > 0 || entry.definition) {
            erase_if_unused(one.entry);
            continue;
        }
        drop_host(one.entry, false);
        while (!entry.copies.empty()) {
            const Copy copy = entry.copies.back();
            DeviceState& state = devices_[copy.device.value];
            Block& block = state.blocks[size_t(copy.block)];
            const bool unused = block.refs == 0;
            if (unused) {
                unlink_cached(state, copy.block);
                if (block.loading) end_load(copy.device, copy.block);
            }
            const bool last = entry.copies.size() == 1;
            unname(copy.device, copy.block);
            if (unused) state.free.push_back(copy.block);
            if (last) break;  // the entry is gone
        }
        erase_if_unused(one.entry);
    }
}

void BlockPool::settle_to_disk(const SessionKey& session) {
    const auto found = session_index_.find(session);
    if (found == session_index_.end()) return;
    for (const HeldEntry& one : sessions_[found->second].held) {
        entries_[one.entry].to_disk = entries_[one.entry].host != HostState::ready;
        store_disk(one.entry);
    }
}

// --- to and from other nodes ----------------------------------------------------------------------------------------

void BlockPool::holdings(const SessionKey& session, const KvChain& chain, std::vector<BlockName>& out) const {
    std::unordered_set<uint32_t> named;
    for (const KvHash& hash : chain.blocks) {
        const uint32_t index = find(hash);
        if (index == none) break;
        const Entry& entry = entries_[index];
        named.insert(index);
        out.push_back({hash, entry.tokens, {session.tenant, entry.definition ? SessionId{} : session.session}});
    }
    const auto found = session_index_.find(session);
    if (found == session_index_.end()) return;
    for (const HeldEntry& one : sessions_[found->second].held)
        if (named.insert(one.entry).second)
            out.push_back({entries_[one.entry].hash, entries_[one.entry].tokens, session});
}

void BlockPool::definitions(TenantId tenant, std::vector<BlockName>& out) const {
    for (const uint32_t index : definitions_)
        if (entries_[index].tenant == tenant)
            out.push_back({entries_[index].hash, entries_[index].tokens, {tenant, SessionId{}}});
}

bool BlockPool::export_block(const KvHash& hash) {
    const uint32_t index = find(hash);
    if (index == none) return false;
    for (const Copy& copy : entries_[index].copies) {
        if (block_at(copy.device, copy.block).loading) continue;
        devices_[copy.device.value].exports.push_back(hash);
        return true;
    }
    return false;
}

bool BlockPool::claim(const BlockName& block) {
    const uint32_t index = find(block.hash);
    if (index == none || entries_[index].tenant != block.owner.tenant) return false;
    hold(index, block);
    return true;
}

bool BlockPool::has_tier_room() const {
    return config_.host_blocks_max > 0 && (host_blocks_ < config_.host_blocks_max || config_.disk);
}

BlockTaken BlockPool::accept(const BlockName& block) {
    if (claim(block)) return BlockTaken::known;
    // A name that is another tenant's can be no block of this one's.
    if (!has_tier_room() || find(block.hash) != none) return BlockTaken::no_room;
    const bool host = host_blocks_ < config_.host_blocks_max;
    const uint32_t index = find_or_make(block.hash, block.tokens, block.owner.tenant);
    hold(index, block);
    entries_[index].host = HostState::ready;
    host_link(index);
    ++host_blocks_;
    if (host) return BlockTaken::host;
    drop_host(index, true);
    return BlockTaken::disk;
}

BlockPoolStats BlockPool::stats() const {
    BlockPoolStats out = stats_;
    out.host_blocks = host_blocks_;
    out.disk_blocks = disk_blocks_;
    out.entries = index_.size();
    return out;
}

std::string BlockPool::check() const {
    if (host_blocks_ > config_.host_blocks_max) return "more blocks in the host's memory than its bound";
    uint64_t host = 0, disk = 0, listed = 0;
    for (uint32_t i = host_oldest_; i != none; i = entries_[i].host_after) {
        if (entries_[i].host != HostState::ready || !entries_[i].live)
            return "the host's list has one that is not there";
        ++listed;
    }
    uint64_t linked = 0;
    for (const auto& [hash, index] : index_) {
        const Entry& entry = entries_[index];
        if (!entry.live || entry.hash != hash) return "the index points to another entry";
        host += entry.host != HostState::absent;
        disk += entry.disk != DiskState::absent;
        linked += entry.host == HostState::ready && entry.load_pins == 0;
        if (entry.copies.empty() && entry.host == HostState::absent && entry.disk == DiskState::absent)
            return "an entry of nothing";
        if (entry.holder_count == 0 && !entry.definition) return "a cached block that no session holds";
        for (const Copy& copy : entry.copies)
            if (!has_device(copy.device) || devices_[copy.device.value].blocks[size_t(copy.block)].entry != index)
                return "a copy on a device that does not know it";
        for (size_t k = 0; k < entry.holder_count; ++k) {
            const Holder& holder = entry.holders[k];
            const auto& held = sessions_[holder.session].held;
            if (holder.place >= held.size() || held[holder.place].entry != index || held[holder.place].holder != k)
                return "a holder that does not hold";
        }
    }
    if (host != host_blocks_ || disk != disk_blocks_) return "blocks of a tier are miscounted";
    if (linked != listed) return "the host's list is not what the entries say";
    for (uint32_t d = 0; d < devices_.size(); ++d) {
        const DeviceState& state = devices_[d];
        if (!state.present) continue;
        std::vector<uint32_t> refs(state.blocks.size(), 0);
        for (const Table& table : tables_) {
            if (!table.live || table.device.value != d) continue;
            std::unordered_set<BlockId> seen;
            for (size_t i = 0; i < table.blocks.size(); ++i) {
                const BlockId block = table.blocks[i];
                if (block <= block_null || size_t(block) >= state.blocks.size()) return "a table with a block of none";
                if (!seen.insert(block).second) return "a block twice in a table";
                ++refs[size_t(block)];
                if (i >= table.named && state.blocks[size_t(block)].entry != none) return "a tail that has a name";
                if (i >= table.named && state.blocks[size_t(block)].refs != 1) return "a tail in two tables";
            }
        }
        std::vector<uint8_t> is_free(state.blocks.size(), 0);
        for (const BlockId block : state.free) {
            if (is_free[size_t(block)]++) return "a block twice among the free ones";
            if (refs[size_t(block)] > 0) return "a block both free and in a table";
            if (state.blocks[size_t(block)].entry != none) return "a free block with a name";
        }
        uint32_t cached = 0;
        for (BlockId b = 1; size_t(b) < state.blocks.size(); ++b) {
            const Block& block = state.blocks[size_t(b)];
            if (block.refs != refs[size_t(b)]) return "references are miscounted";
            if (block.cached != (block.refs == 0 && block.entry != none))
                return "cached is what has a name and no table";
            if (block.refs == 0 && !block.cached && !is_free[size_t(b)]) return "a block was lost";
            if (block.entry != none && copy_on(entries_[block.entry], DeviceId{d}) != b) return "a name without a copy";
            cached += block.cached;
        }
        uint32_t in_list = 0;
        for (BlockId b = state.oldest; b != block_none; b = state.blocks[size_t(b)].after) ++in_list;
        if (cached != state.cached || in_list != cached) return "cached blocks are miscounted";
    }
    return {};
}

}  // namespace mainstay
