// Whatever lies on a disk: batches, heads and turn rows of arbitrary bytes are refused or read, never more. What is
// read must come back the same when it is written again. The first byte chooses the format.
#include <cstdint>
#include <cstdlib>

#include "runtime/base/digest.h"
#include "runtime/session/event_json.h"
#include "runtime/session/fold.h"

namespace {

using namespace mainstay;

const SessionKey key{TenantId{7}, SessionId{FamilyId{9}, 1, 2}};

void batch(std::string_view bytes) {
    auto first = decode_batch(bytes);
    if (!first) return;
    auto again = decode_batch(encode(*first));
    if (!again || batch_json(*again, Sequence{1}) != batch_json(*first, Sequence{1})) std::abort();
    // A batch that fits an empty session makes one that can be asked anything.
    Session session(key);
    if (!session.try_apply(*first, Sequence{1})) return;
    (void)session.pending();
    if (!session.deleted() && !Session::decode_head(key, session.encode_head())) std::abort();
}

void head(std::string_view bytes) {
    auto session = Session::decode_head(key, bytes);
    if (!session) return;
    (void)session->pending();
    (void)session->window();
    auto again = Session::decode_head(key, session->encode_head());
    if (!again || again->encode_head() != session->encode_head()) std::abort();
    Command tick;
    tick.context.now = ~0ull >> 8;
    tick.body = Tick{};
    (void)session->decide(tick);
    tick.body = CancelTurn{};
    (void)session->decide(tick);
}

// With a checksum that is right, or the fuzzer would never get past it.
void row(std::string_view bytes) {
    std::string whole(bytes);
    if (whole.size() >= 12) {
        const uint32_t crc = crc32c(std::string_view(whole).substr(12));
        for (size_t i = 0; i < 4; ++i) whole[8 + i] = static_cast<char>(crc >> (8 * i));
    }
    for (uint32_t no : {1u, 7u}) (void)turn_from_row(key, TurnNo{no}, whole);
}

void fold(std::string_view bytes) {
    std::vector<RowOp> rows;
    SessionFold folding;
    const size_t half = bytes.size() / 2;
    (void)folding.fold(key, std::nullopt, {FoldRecord{Lsn{1}, Epoch{1}, Sequence{1}, bytes}}, rows);
    (void)folding.fold(key, bytes.substr(0, half), {FoldRecord{Lsn{1}, Epoch{1}, Sequence{1}, bytes.substr(half)}},
                       rows);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size < 1) return 0;
    const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
    switch (data[0] % 4) {
        case 0: batch(bytes); break;
        case 1: head(bytes); break;
        case 2: row(bytes); break;
        default: fold(bytes);
    }
    return 0;
}
