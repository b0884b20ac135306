#include "actors/left_work_message.h"

#include "actors/model_step_message.h"
#include "actors/tool_outcome_message.h"
#include "cluster/wire_message.h"
#include "runtime/base/utf8.h"
#include "schema/left_work.capnp.h"

namespace mainstay {
namespace {

constexpr uint64_t slack_words = 64;
constexpr int nesting_max = 4;

Error refused(const char* why) { return {ErrorCode::peer_refused, std::string("work left behind: ") + why, {}}; }

void write(wire::LeftName::Builder to, const LeftName& from) {
    to.setIsTool(from.is_tool);
    to.setTurn(from.turn.value);
    to.setNumber(from.number);
    to.setAttempt(from.attempt);
}
LeftName read(wire::LeftName::Reader from) {
    return {from.getIsTool(), TurnNo{from.getTurn()}, from.getNumber(), from.getAttempt()};
}

void head(wire::LeftRequest::Builder to, const SessionKey& session, Epoch epoch) {
    to.setTenant(session.tenant.value);
    to.setFamily(session.session.family.value);
    to.setHigh(session.session.high);
    to.setLow(session.session.low);
    to.setEpoch(epoch.value);
}

std::string_view view(capnp::Data::Reader from) { return {reinterpret_cast<const char*>(from.begin()), from.size()}; }

Result<LeftPart> read_model(const LeftName& work, std::string_view bytes) {
    auto part = decode_step_part(bytes);
    if (!part) return part.error();
    auto* ended = std::get_if<StepEnded>(&*part);
    if (!ended) return refused("a step that did not end");
    if (auto* result = std::get_if<ModelResult>(&ended->outcome))
        return LeftPart(LeftModelEnded{work, std::move(*result)});
    if (auto* error = std::get_if<ModelError>(&ended->outcome))
        return LeftPart(LeftModelEnded{work, std::move(*error)});
    return refused("a step that was paused");
}

}  // namespace

LeftPart lost_left_work(const LeftName& work, std::string why) {
    if (!work.is_tool)
        return LeftModelEnded{work, ModelError{ErrorClass::lost, ErrorCode::model_unavailable, std::move(why), 0}};
    ToolOutcome outcome;
    outcome.kind = ToolOutcome::Kind::lost;
    outcome.error_class = ErrorClass::lost;
    outcome.message = std::move(why);
    return LeftToolEnded{work, std::move(outcome)};
}

std::string encode_left_request(const LeftRequest& request) {
    capnp::MallocMessageBuilder builder;
    auto to = builder.initRoot<wire::LeftRequest>();
    if (const auto* claim = std::get_if<ClaimLeftWork>(&request)) {
        head(to, claim->session, claim->epoch);
        to.setClaim();
    } else {
        const auto& cancel = std::get<CancelLeftWork>(request);
        head(to, cancel.session, cancel.epoch);
        write(to.initCancel(), cancel.work);
    }
    return flat_bytes(builder);
}

std::string encode_left_part(const LeftPart& part) {
    capnp::MallocMessageBuilder builder;
    auto to = builder.initRoot<wire::LeftPart>();
    if (const auto* here = std::get_if<LeftHere>(&part)) {
        write(to.initWork(), here->work);
        to.setHere();
    } else if (std::holds_alternative<LeftListed>(part)) {
        to.setListed();
    } else if (const auto* delta = std::get_if<LeftDelta>(&part)) {
        write(to.initWork(), delta->work);
        put_bytes(to.initDelta(static_cast<unsigned>(delta->text.size())), delta->text);
    } else if (const auto* model = std::get_if<LeftModelEnded>(&part)) {
        write(to.initWork(), model->work);
        StepEnded ended;
        std::visit([&](const auto& outcome) { ended.outcome = outcome; }, model->outcome);
        const std::string bytes = encode_ended(ended);
        put_bytes(to.initModel(static_cast<unsigned>(bytes.size())), bytes);
    } else {
        const auto& tool = std::get<LeftToolEnded>(part);
        write(to.initWork(), tool.work);
        const std::string bytes = encode_outcome(tool.outcome);
        put_bytes(to.initTool(static_cast<unsigned>(bytes.size())), bytes);
    }
    return flat_bytes(builder);
}

Result<LeftRequest> decode_left_request(std::string_view bytes) {
    return read_flat<wire::LeftRequest, LeftRequest>(
        bytes, slack_words, nesting_max, refused, [](wire::LeftRequest::Reader from) -> Result<LeftRequest> {
            const SessionKey session{TenantId{from.getTenant()},
                                     SessionId{FamilyId{from.getFamily()}, from.getHigh(), from.getLow()}};
            const Epoch epoch{from.getEpoch()};
            switch (from.which()) {
                case wire::LeftRequest::CLAIM: return LeftRequest(ClaimLeftWork{session, epoch});
                case wire::LeftRequest::CANCEL:
                    return LeftRequest(CancelLeftWork{session, epoch, read(from.getCancel())});
                default: return refused("this release does not know that request");
            }
        });
}

Result<LeftPart> decode_left_part(std::string_view bytes) {
    return read_flat<wire::LeftPart, LeftPart>(bytes, slack_words, nesting_max, refused,
                                               [](wire::LeftPart::Reader from) -> Result<LeftPart> {
                                                   const LeftName work = read(from.getWork());
                                                   switch (from.which()) {
                                                       case wire::LeftPart::HERE: return LeftPart(LeftHere{work});
                                                       case wire::LeftPart::LISTED: return LeftPart(LeftListed{});
                                                       case wire::LeftPart::DELTA: {
                                                           LeftDelta delta{work, copied(from.getDelta())};
                                                           if (delta.text.size() > limits::model_step_part_bytes_max)
                                                               return refused("a delta beyond its bound");
                                                           if (!is_valid_utf8(delta.text))
                                                               return refused("a text is no UTF-8");
                                                           return LeftPart(std::move(delta));
                                                       }
                                                       case wire::LeftPart::MODEL:
                                                           return read_model(work, view(from.getModel()));
                                                       case wire::LeftPart::TOOL: {
                                                           auto outcome = decode_outcome(view(from.getTool()));
                                                           if (!outcome) return outcome.error();
                                                           return LeftPart(LeftToolEnded{work, std::move(*outcome)});
                                                       }
                                                       default: return refused("this release does not know that part");
                                                   }
                                               });
}

}  // namespace mainstay
