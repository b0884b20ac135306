#include "runtime/session/turn_row.h"

#include <zstd.h>

#include <cstring>
#include <memory>

#include "runtime/base/digest.h"
#include "runtime/base/limits.h"
#include "runtime/session/fold.h"

namespace mainstay {
namespace {

// Row: format u8, codec u8, zero u16, length u32 of the entries uncompressed, crc32c u32 of what follows; then the
// entries, compressed or not. Entry: first sequence u64, length u32, the batch. Little-endian throughout.
constexpr size_t header_bytes = 12, entry_bytes = 12;
constexpr uint8_t row_format = 1;
// The store compresses what it keeps, in one place for all rows; zstd here is what earlier versions wrote.
enum Codec : uint8_t { codec_none = 0, codec_zstd = 1 };
// A turn has bounded batches, but many of them; no row of this room is longer.
constexpr size_t row_bytes_max = 1ull << 30;

template <class T>
void put(std::string& out, T value) {
    for (size_t i = 0; i < sizeof(T); ++i) out.push_back(static_cast<char>(value >> (8 * i)));
}

template <class T>
T get(std::string_view bytes, size_t at) {
    T value = 0;
    for (size_t i = 0; i < sizeof(T); ++i)
        value |= static_cast<T>(static_cast<T>(static_cast<unsigned char>(bytes[at + i])) << (8 * i));
    return value;
}

struct FreeDecompressor {
    void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
};

ZSTD_DCtx* decompressor() {
    thread_local std::unique_ptr<ZSTD_DCtx, FreeDecompressor> context(ZSTD_createDCtx());
    return context.get();
}

Error damaged(const char* what) { return Error{ErrorCode::state_damaged, what, {}}; }

}  // namespace

std::string encode_turn_row(const std::vector<Session::RawBatch>& batches) {
    size_t length = 0;
    for (const Session::RawBatch& batch : batches) length += entry_bytes + batch.bytes.size();
    INVARIANT(length < row_bytes_max, "the batches of a turn fit a row");
    std::string row;
    row.reserve(header_bytes + length);
    row.push_back(static_cast<char>(row_format));
    row.push_back(static_cast<char>(codec_none));
    put(row, uint16_t{0});
    put(row, static_cast<uint32_t>(length));
    put(row, uint32_t{0});
    for (const Session::RawBatch& batch : batches) {
        put(row, batch.first_sequence.value);
        put(row, static_cast<uint32_t>(batch.bytes.size()));
        row.append(batch.bytes);
    }
    const uint32_t crc = crc32c(std::string_view(row).substr(header_bytes));
    for (size_t i = 0; i < 4; ++i) row[8 + i] = static_cast<char>(crc >> (8 * i));
    return row;
}

Result<std::vector<Session::RawBatch>> decode_turn_row(std::string_view row, std::string& storage) {
    if (row.size() < header_bytes) return damaged("a turn row shorter than its header");
    if (static_cast<uint8_t>(row[0]) != row_format) return damaged("a turn row of another format");
    const size_t length = get<uint32_t>(row, 4);
    std::string_view body = row.substr(header_bytes);
    if (crc32c(body) != get<uint32_t>(row, 8)) return damaged("a turn row whose checksum is wrong");
    if (length > row_bytes_max) return damaged("a turn row longer than any");
    if (static_cast<uint8_t>(row[1]) == codec_zstd) {
        if (ZSTD_getFrameContentSize(body.data(), body.size()) != length)
            return damaged("a turn row whose lengths disagree");
        storage.resize(length);
        const size_t size =
            ZSTD_decompressDCtx(decompressor(), storage.data(), storage.size(), body.data(), body.size());
        if (ZSTD_isError(size) || size != length) return damaged("a turn row that cannot be uncompressed");
        body = storage;
    } else if (static_cast<uint8_t>(row[1]) != codec_none) {
        return damaged("a turn row of another codec");
    }
    if (body.size() != length) return damaged("a turn row whose lengths disagree");
    std::vector<Session::RawBatch> batches;
    for (size_t at = 0; at < body.size();) {
        if (body.size() - at < entry_bytes) return damaged("an entry shorter than its header");
        const Sequence first{get<uint64_t>(body, at)};
        const size_t size = get<uint32_t>(body, at + 8);
        at += entry_bytes;
        if (size > body.size() - at) return damaged("an entry longer than its row");
        batches.push_back(Session::RawBatch{first, body.substr(at, size)});
        at += size;
    }
    if (batches.empty()) return damaged("a turn row without batches");
    return batches;
}

Result<std::vector<SequencedBatch>> batches_from_row(std::string_view row) {
    std::string storage;
    auto raw = decode_turn_row(row, storage);
    if (!raw) return raw.error();
    std::vector<SequencedBatch> batches;
    for (const Session::RawBatch& entry : *raw) {
        auto batch = decode_batch(entry.bytes);
        if (!batch) return Error{ErrorCode::state_damaged, batch.error().message, {}};
        batches.emplace_back(entry.first_sequence.value, std::move(*batch));
    }
    return batches;
}

Result<Turn> turn_from_row(SessionKey, TurnNo no, std::string_view row) {
    auto batches = batches_from_row(row);
    if (!batches) return batches.error();
    TurnProgress progress;
    progress.turn.no = no;
    for (const auto& [first, batch] : *batches) {
        if (batch.turn != no) return damaged("a turn row with a batch of another turn");
        Sequence sequence{first};
        for (const Event& event : batch.events) {
            if (!progress.apply(event, sequence, batch.at)) return damaged("a turn row whose events do not follow");
            ++sequence.value;
        }
    }
    if (!progress.settled()) return damaged("a turn row of a turn that is not settled");
    return std::move(progress.turn);
}

std::string session_batch_row_key(const SessionKey& key, Sequence first_sequence, uint16_t shard_count) {
    std::string out = session_row_key(key, shard_count);
    const uint64_t number = (1ull << 63) | first_sequence.value;
    for (int shift = 56; shift >= 0; shift -= 8) out.push_back(static_cast<char>(number >> shift));
    return out;
}

std::string turn_rows_end(const SessionKey& key, uint16_t shard_count) {
    return session_batch_row_key(key, Sequence{0}, shard_count);
}

std::string encode_key_row(const KnownKey& known) {
    std::string row;
    put(row, uint32_t{1});  // format
    put(row, known.turn.value);
    put(row, known.request_digest);
    put(row, known.at);
    return row;
}

Result<KnownKey> decode_key_row(std::string_view row) {
    if (row.size() < 24 || get<uint32_t>(row, 0) != 1) return damaged("a key row of another format");
    return KnownKey{TurnNo{get<uint32_t>(row, 4)}, get<uint64_t>(row, 8), get<uint64_t>(row, 16)};
}

bool key_row_expired(std::string_view row, TimeMs now) {
    auto known = decode_key_row(row);
    return !known || now >= known->at + limits::idempotency_key_lifetime_ms;
}

}  // namespace mainstay
