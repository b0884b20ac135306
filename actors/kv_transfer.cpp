#include "actors/kv_transfer.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <caf/event_based_actor.hpp>
#include <caf/send.hpp>
#include <deque>
#include <map>
#include <mutex>
#include <unordered_set>

#include "actors/kv_message.h"
#include "actors/messages.h"
#include "actors/own_model.h"

namespace mainstay {

/// What the worker is to do next: the answers of models and nodes come back to it in this way.
struct KvTask {
    std::function<void()> run;
};

}  // namespace mainstay

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::KvTask)

namespace mainstay {
namespace {

constexpr TimeMs asked_within_ms = 1000;  // who asks later asks about another hand-over
constexpr uint32_t forget_timeout_ms = 5'000;
constexpr size_t forget_waiting_max = 64 * 1024;  // sessions, for one node; its tiers' caps bound what is left
constexpr int rounds_max = 3;                     // what was computed while blocks were sent is sent after them

TimeMs now_ms(const Clock& clock) { return TimeMs(clock.monotonic_ns() / 1'000'000); }

}  // namespace

/// What busy() answers from.
class KvTransfer::Moves {
  public:
    explicit Moves(const Clock& clock) : clock_(clock) {}

    /// A number, if the move is to begin now.
    std::optional<uint64_t> ask(ShardId shard, const NodeUuid& to, bool& busy) {
        const TimeMs now = now_ms(clock_);
        std::lock_guard lock(mutex_);
        Known& known = moves_[shard];
        const bool another = known.number == 0 || known.to != to || now > known.asked_at + asked_within_ms;
        if (another) known = {to, ++numbers_, now + limits::kv_move_ms_max, now, false};
        known.asked_at = now;
        busy = !known.done && now < known.until;
        return another ? std::optional(known.number) : std::nullopt;
    }
    void done(ShardId shard, uint64_t number) {
        std::lock_guard lock(mutex_);
        Known& known = moves_[shard];
        known.done = known.done || known.number == number;
    }

    /// Calls what reaches other nodes, as long as there is anything to reach them.
    template <class Call>
    void outside(Call call) {
        std::lock_guard lock(outside_mutex_);
        if (!stopped_) call();
    }
    void stop() {
        std::lock_guard lock(outside_mutex_);
        stopped_ = true;
    }

  private:
    struct Known {
        NodeUuid to{};
        uint64_t number = 0;
        TimeMs until = 0, asked_at = 0;
        bool done = false;
    };
    const Clock& clock_;
    std::mutex mutex_;
    std::map<ShardId, Known> moves_;  // at most one for each shard
    uint64_t numbers_ = 0;
    std::mutex outside_mutex_;
    bool stopped_ = false;
};

/// Everything below runs in one actor.
class KvTransfer::Worker {
  public:
    Worker(KvTransferConfig config, std::shared_ptr<Moves> moves)
        : config_(std::move(config)), moves_(std::move(moves)) {}

    /// First of all.
    void live_in(caf::event_based_actor* self) { self_ = self; }
    void begin(ShardId shard, const NodeUuid& to, uint64_t number);
    void serve(const std::string& request, const std::shared_ptr<CallReply>& reply);
    void session_deleted(const SessionKey& session);

  private:
    struct Move {
        ShardId shard;
        NodeUuid to{};
        uint64_t number = 0;
        TimeMs until = 0;
        std::vector<std::shared_ptr<OwnModel>> models;
        size_t model = 0;  // whose turn it is
        int round = 1;
        bool sent_any = false;  // in this round
        KvOf of;
        uint64_t block_bytes = 0;
        std::deque<BlockName> listed;  // to be asked about
        std::deque<BlockName> wanted;  // to be sent
        std::unordered_set<KvHash, KvHashHasher> seen;
        KvTransferFigures figures;  // of this model, not counted there yet
        uint64_t bytes = 0;         // sent, whatever became of them
        uint64_t taken_blocks = 0, taken_bytes = 0;
        std::vector<SessionKey> deleted;  // meanwhile
    };
    using MovePtr = std::shared_ptr<Move>;

    /// A callback for any thread that runs `then` with its argument in this actor, as long as there is one.
    template <class T, class Then>
    std::function<void(Result<T>)> here(Then then) const {
        return [to = caf::actor_cast<caf::actor>(self_), then = std::move(then)](Result<T> result) {
            caf::anon_send(to, KvTask{[then, result = std::move(result)]() mutable { then(std::move(result)); }});
        };
    }
    void start(const MovePtr& move);
    void list(const MovePtr& move);
    void listed(const MovePtr& move, KvHoldings holdings);
    void go_on(const MovePtr& move);
    void ask(const MovePtr& move);
    void asked(const MovePtr& move, const std::vector<BlockName>& names, const Result<std::string>& answer);
    void fetch(const MovePtr& move);
    void send(const MovePtr& move, const std::vector<BlockName>& names, std::vector<BlockExported> blocks);
    void sent(const MovePtr& move, const std::vector<BlockName>& names, const std::vector<uint64_t>& sizes,
              const Result<std::string>& answer);
    void next_model(const MovePtr& move);
    void finish(const MovePtr& move);
    void leave(Move& move, KvOutcome why);
    uint32_t time_left(const Move& move) const;
    void forget(const NodeUuid& to, const std::vector<SessionKey>& sessions);
    void forget_some(const NodeUuid& to);
    void ask_node(const NodeUuid& to, std::string request, uint32_t timeout_ms,
                  std::function<void(Result<std::string>)> done) {
        moves_->outside([&] { config_.ask(to, std::move(request), std::max(1u, timeout_ms), std::move(done)); });
    }

    caf::event_based_actor* self_ = nullptr;
    const KvTransferConfig config_;
    const std::shared_ptr<Moves> moves_;
    std::deque<MovePtr> waiting_;
    std::vector<MovePtr> active_;
    bool starting_ = false;  // the waiting ones: by the first that has ended, not within one another
    struct Forgetting {
        std::deque<SessionKey> sessions;
        bool under_way = false;
    };
    std::map<NodeUuid, Forgetting> forgetting_;
};

// --- to another node -------------------------------------------------------------------------------------------------

void KvTransfer::Worker::begin(ShardId shard, const NodeUuid& to, uint64_t number) {
    auto move = std::make_shared<Move>();
    move->shard = shard;
    move->to = to;
    move->number = number;
    move->until = now_ms(*config_.clock) + limits::kv_move_ms_max;
    move->models = config_.models->own_models();
    if (active_.size() < limits::kv_moves_max)
        start(move);
    else
        waiting_.push_back(std::move(move));
}

void KvTransfer::Worker::start(const MovePtr& move) {
    active_.push_back(move);
    list(move);
}

uint32_t KvTransfer::Worker::time_left(const Move& move) const {
    const TimeMs now = now_ms(*config_.clock);
    return now < move.until ? uint32_t(move.until - now) : 0;
}

/// What this model has of the shard's sessions.
void KvTransfer::Worker::list(const MovePtr& move) {
    if (move->model == move->models.size() || time_left(*move) == 0) return next_model(move);
    auto list = std::make_shared<ListKv>();
    list->wanted = [shard = move->shard, shards = config_.shards](const SessionKey& key) {
        return shard_of(key, shards) == shard;
    };
    list->bytes_max = limits::kv_move_bytes_max;
    list->done = ReplyTo<KvHoldings>(here<KvHoldings>(
        [this, move](Result<KvHoldings> holdings) { listed(move, holdings ? std::move(*holdings) : KvHoldings{}); }));
    move->models[move->model]->list_kv(std::move(list));
}

void KvTransfer::Worker::listed(const MovePtr& move, KvHoldings holdings) {
    move->of = {move->models[move->model]->name(), std::move(holdings.model_hash), std::move(holdings.kv_format),
                holdings.block_tokens};
    move->block_bytes = holdings.block_bytes;
    // A block that several sessions share is sent with the first of them. The others are told after all else: then it
    // is known there, and theirs as well.
    std::deque<BlockName> shared;
    for (BlockName& name : holdings.blocks) {
        if (move->seen.insert(name.hash).second)
            move->listed.push_back(std::move(name));
        else if (move->round == 1)
            shared.push_back(std::move(name));
    }
    std::move(shared.begin(), shared.end(), std::back_inserter(move->listed));
    go_on(move);
}

void KvTransfer::Worker::go_on(const MovePtr& move) {
    if (time_left(*move) == 0 || move->bytes + move->block_bytes > limits::kv_move_bytes_max)
        leave(*move, KvOutcome::beyond_bounds);
    if (!move->wanted.empty())
        fetch(move);
    else if (!move->listed.empty())
        ask(move);
    else
        next_model(move);
}

/// What is still to be asked about or sent stays.
void KvTransfer::Worker::leave(Move& move, KvOutcome why) {
    move.figures.blocks[size_t(why)] += move.listed.size() + move.wanted.size();
    move.listed.clear();
    move.wanted.clear();
}

void KvTransfer::Worker::ask(const MovePtr& move) {
    std::vector<BlockName> names;
    while (!move->listed.empty() && names.size() < limits::kv_message_blocks_max) {
        names.push_back(std::move(move->listed.front()));
        move->listed.pop_front();
    }
    auto request = encode_kv_wanted({move->of, names});
    ask_node(move->to, std::move(request), time_left(*move),
             here<std::string>([this, move, names = std::move(names)](const Result<std::string>& answer) {
                 asked(move, names, answer);
             }));
}

void KvTransfer::Worker::asked(const MovePtr& move, const std::vector<BlockName>& names,
                               const Result<std::string>& answer) {
    const auto outcomes = answer ? decode_kv_answer(*answer) : Result<std::vector<KvOutcome>>(answer.error());
    if (!outcomes || outcomes->size() != names.size()) {
        move->figures.blocks[size_t(KvOutcome::unreachable)] += names.size();
        leave(*move, KvOutcome::unreachable);
        return next_model(move);
    }
    std::unordered_set<KvHash, KvHashHasher> once;
    for (size_t i = 0; i < names.size(); ++i) {
        const bool taken = (*outcomes)[i] == KvOutcome::taken;
        if (taken && once.insert(names[i].hash).second)
            move->wanted.push_back(names[i]);
        else if (taken)
            move->listed.push_back(names[i]);  // shared within this message: asked again when it is there
        else
            ++move->figures.blocks[size_t((*outcomes)[i])];
    }
    go_on(move);
}

void KvTransfer::Worker::fetch(const MovePtr& move) {
    const size_t fit = size_t(std::max<uint64_t>(1, limits::kv_message_bytes_max / move->block_bytes));
    std::vector<BlockName> names;
    auto wanted = std::make_shared<ExportKv>();
    while (!move->wanted.empty() && names.size() < std::min(fit, limits::kv_message_blocks_max)) {
        wanted->hashes.push_back(move->wanted.front().hash);
        names.push_back(std::move(move->wanted.front()));
        move->wanted.pop_front();
    }
    using Blocks = std::vector<BlockExported>;
    wanted->done = ReplyTo<Blocks>(here<Blocks>([this, move, names = std::move(names)](Result<Blocks> blocks) {
        send(move, names, blocks ? std::move(*blocks) : Blocks{});
    }));
    move->models[move->model]->export_kv(std::move(wanted));
}

void KvTransfer::Worker::send(const MovePtr& move, const std::vector<BlockName>& names,
                              std::vector<BlockExported> blocks) {
    blocks.resize(names.size());
    std::vector<BlockName> there;
    std::vector<std::string_view> bytes;
    std::vector<uint64_t> sizes;
    for (size_t i = 0; i < names.size(); ++i) {
        // Beside other blocks a link's message holds one of this size; a larger one could not be put together there.
        if (!blocks[i].bytes || blocks[i].bytes->size() > limits::link_message_bytes_max / 2) {
            ++move->figures.blocks[size_t(KvOutcome::gone)];
            continue;
        }
        there.push_back(names[i]);
        bytes.push_back(*blocks[i].bytes);
        sizes.push_back(bytes.back().size());
        move->bytes += bytes.back().size();
    }
    if (there.empty()) return go_on(move);
    auto request = encode_kv_blocks(move->of, there, bytes);
    ask_node(move->to, std::move(request), time_left(*move),
             here<std::string>([this, move, there = std::move(there), sizes = std::move(sizes)](
                                   const Result<std::string>& answer) { sent(move, there, sizes, answer); }));
}

void KvTransfer::Worker::sent(const MovePtr& move, const std::vector<BlockName>& names,
                              const std::vector<uint64_t>& sizes, const Result<std::string>& answer) {
    const auto outcomes = answer ? decode_kv_answer(*answer) : Result<std::vector<KvOutcome>>(answer.error());
    if (!outcomes || outcomes->size() != names.size()) {
        move->figures.blocks[size_t(KvOutcome::unreachable)] += names.size();
        leave(*move, KvOutcome::unreachable);
        return next_model(move);
    }
    for (size_t i = 0; i < names.size(); ++i) {
        ++move->figures.blocks[size_t((*outcomes)[i])];
        if ((*outcomes)[i] != KvOutcome::taken) continue;
        move->figures.sent_bytes += sizes[i];
        ++move->taken_blocks;
        move->taken_bytes += sizes[i];
        move->sent_any = true;
    }
    go_on(move);
}

void KvTransfer::Worker::next_model(const MovePtr& move) {
    if (move->model < move->models.size()) move->models[move->model++]->count_kv(std::exchange(move->figures, {}));
    const bool over = time_left(*move) == 0;
    if (move->model < move->models.size() && !over) return list(move);
    if (!move->sent_any || move->round == rounds_max || over) return finish(move);
    ++move->round;
    move->sent_any = false;
    move->model = 0;
    list(move);
}

void KvTransfer::Worker::finish(const MovePtr& move) {
    if (move->taken_blocks > 0)
        spdlog::info("shard {}: {} KV blocks, {} bytes, went ahead", move->shard.value, move->taken_blocks,
                     move->taken_bytes);
    if (!move->deleted.empty()) forget(move->to, move->deleted);
    std::erase(active_, move);
    moves_->done(move->shard, move->number);
    moves_->outside([&] {
        if (config_.moved) config_.moved();
    });
    if (std::exchange(starting_, true)) return;
    while (active_.size() < limits::kv_moves_max && !waiting_.empty()) {
        const MovePtr next = std::move(waiting_.front());
        waiting_.pop_front();
        start(next);
    }
    starting_ = false;
}

// --- from another node -----------------------------------------------------------------------------------------------

void KvTransfer::Worker::serve(const std::string& request, const std::shared_ptr<CallReply>& reply) {
    const auto answer = [reply](const std::vector<KvOutcome>& outcomes) {
        reply->part(encode_kv_answer(outcomes));
        reply->end();
    };
    auto read = decode_kv_request(request);
    if (!read) return reply->end(read.error());
    if (const auto* forget = std::get_if<KvForget>(&*read)) {
        for (const SessionKey& session : forget->sessions) config_.models->forget_session(session);
        return answer({});
    }
    auto* wanted = std::get_if<KvWanted>(&*read);
    auto* blocks = std::get_if<KvBlocks>(&*read);
    const KvOf& of = wanted ? wanted->of : blocks->of;
    const size_t count = wanted ? wanted->blocks.size() : blocks->blocks.size();
    const auto model = config_.models->own_model_named(of.model);
    if (!model) return answer(std::vector(count, KvOutcome::no_model));
    auto take = std::make_shared<TakeKv>();
    take->model_hash = of.model_hash;
    take->kv_format = of.kv_format;
    take->block_tokens = of.block_tokens;
    std::vector<bool> whole(count, true);
    if (wanted) {
        take->blocks = std::move(wanted->blocks);
    } else {
        whole = std::move(blocks->whole);
        for (size_t i = 0; i < count; ++i) {
            if (!whole[i]) continue;
            take->blocks.push_back(std::move(blocks->blocks[i]));
            take->bytes.push_back(std::move(blocks->bytes[i]));
        }
        if (take->blocks.empty()) return answer(std::vector(count, KvOutcome::damaged));
    }
    using Outcomes = std::vector<KvOutcome>;
    take->done = ReplyTo<Outcomes>([answer, whole = std::move(whole)](Result<Outcomes> taken) {
        Outcomes all(whole.size(), KvOutcome::damaged);
        size_t at = 0;
        for (size_t i = 0; i < whole.size(); ++i)
            if (whole[i]) all[i] = taken ? (*taken)[at++] : KvOutcome::no_model;  // it stops
        answer(all);
    });
    model->take_kv(std::move(take));
}

// --- deleted sessions ------------------------------------------------------------------------------------------------

/// One message for each node at a time: deletions come in bursts, and calls are others' too.
void KvTransfer::Worker::forget(const NodeUuid& to, const std::vector<SessionKey>& sessions) {
    Forgetting& one = forgetting_[to];
    one.sessions.insert(one.sessions.end(), sessions.begin(), sessions.end());
    while (one.sessions.size() > forget_waiting_max) one.sessions.pop_front();
    if (!one.under_way) forget_some(to);
}

void KvTransfer::Worker::forget_some(const NodeUuid& to) {
    Forgetting& one = forgetting_[to];
    one.under_way = !one.sessions.empty();
    if (!one.under_way) {
        forgetting_.erase(to);
        return;
    }
    KvForget some;
    while (!one.sessions.empty() && some.sessions.size() < limits::kv_message_blocks_max) {
        some.sessions.push_back(one.sessions.front());
        one.sessions.pop_front();
    }
    ask_node(to, encode_kv_forget(some), forget_timeout_ms,
             here<std::string>([this, to](const Result<std::string>&) { forget_some(to); }));
}

void KvTransfer::Worker::session_deleted(const SessionKey& session) {
    if (!config_.any_model()) return;
    std::vector<NodeUuid> others;
    moves_->outside([&] { others = config_.others(); });
    for (const NodeUuid& node : others) forget(node, {session});
    // Blocks that are on their way may come after this.
    for (const MovePtr& move : active_)
        if (move->shard == shard_of(session, config_.shards) && move->deleted.size() < limits::kv_message_blocks_max)
            move->deleted.push_back(session);
}

// --- from any thread -------------------------------------------------------------------------------------------------

KvTransfer::KvTransfer(caf::actor_system& system, KvTransferConfig config)
    : moves_(std::make_shared<Moves>(*config.clock)), worker_(std::make_shared<Worker>(std::move(config), moves_)) {
    actor_ = system.spawn([worker = worker_](caf::event_based_actor* self) -> caf::behavior {
        worker->live_in(self);
        return {
            [worker](const KvTask& task) { task.run(); },
            [self](drain_atom) { self->quit(); },
        };
    });
}
KvTransfer::~KvTransfer() { stop(); }

bool KvTransfer::busy(ShardId shard, const NodeUuid& to) {
    bool busy = false;
    if (const auto number = moves_->ask(shard, to, busy))
        caf::anon_send(actor_,
                       KvTask{[worker = worker_, shard, to, number = *number] { worker->begin(shard, to, number); }});
    return busy;
}

void KvTransfer::serve(std::string request, std::shared_ptr<CallReply> reply) {
    caf::anon_send(actor_, KvTask{[worker = worker_, request = std::move(request), reply = std::move(reply)] {
                       worker->serve(request, reply);
                   }});
}

void KvTransfer::session_deleted(const SessionKey& session) {
    caf::anon_send(actor_, KvTask{[worker = worker_, session] { worker->session_deleted(session); }});
}

void KvTransfer::stop() {
    moves_->stop();
    caf::anon_send(actor_, drain_atom::value);
}

}  // namespace mainstay
