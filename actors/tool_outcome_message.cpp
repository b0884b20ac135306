#include "actors/tool_outcome_message.h"

#include "cluster/wire_message.h"
#include "runtime/base/utf8.h"
#include "schema/peer.capnp.h"

namespace mainstay {
namespace {

constexpr uint64_t slack_words = 64;
constexpr int nesting_max = 4;

Error refused(const char* why) { return {ErrorCode::peer_refused, std::string("a call's outcome: ") + why, {}}; }

unsigned size_of(std::string_view text) { return static_cast<unsigned>(text.size()); }

}  // namespace

std::string encode_outcome(const ToolOutcome& outcome) {
    capnp::MallocMessageBuilder builder;
    auto out = builder.initRoot<wire::PeerAnswer>().initOutcome();
    out.setKind(static_cast<uint8_t>(outcome.kind));
    out.setIsError(outcome.is_error);
    put_bytes(out.initOutput(size_of(outcome.output)), outcome.output);
    out.setErrorClass(static_cast<uint8_t>(outcome.error_class));
    const auto code = error_name(outcome.code);
    put_bytes(out.initCode(size_of(code)), code);
    put_bytes(out.initMessage(size_of(outcome.message)), outcome.message);
    out.setDurationMicros(outcome.duration_micros);
    return flat_bytes(builder);
}

Result<ToolOutcome> decode_outcome(std::string_view bytes) {
    return read_flat<wire::PeerAnswer, ToolOutcome>(
        bytes, slack_words, nesting_max, refused, [](wire::PeerAnswer::Reader from) -> Result<ToolOutcome> {
            if (!from.isOutcome()) return refused("there is none");
            const auto outcome = from.getOutcome();
            if (outcome.getKind() > static_cast<uint8_t>(ToolOutcome::Kind::lost)) return refused("unknown kind");
            if (outcome.getErrorClass() > static_cast<uint8_t>(ErrorClass::lost)) return refused("unknown class");
            ToolOutcome out;
            out.kind = static_cast<ToolOutcome::Kind>(outcome.getKind());
            out.is_error = outcome.getIsError();
            out.output = copied(outcome.getOutput());
            out.error_class = static_cast<ErrorClass>(outcome.getErrorClass());
            const auto* code = find_error(copied(outcome.getCode()));
            out.code = code ? code->code : ErrorCode::internal;
            out.message = copied(outcome.getMessage());
            out.duration_micros = outcome.getDurationMicros();
            if (!is_valid_utf8(out.output) || !is_valid_utf8(out.message)) return refused("a text is no UTF-8");
            return out;
        });
}

}  // namespace mainstay
