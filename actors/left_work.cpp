#include "actors/left_work.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <caf/send.hpp>

#include "actors/messages.h"
#include "actors/model_step_message.h"
#include "runtime/base/limits.h"

namespace mainstay {
namespace {

constexpr uint32_t notice_ms = 5'000;  // nobody waits for the answer to a cancel
constexpr std::array<const char*, 5> count_words = {"left", "given", "kept", "taken", "missed"};

void tell(const caf::actor& to, uint64_t claim, uint32_t source, std::optional<LeftPart> part, bool failed = false) {
    caf::anon_send(to, std::make_shared<LeftNews>(LeftNews{claim, source, std::move(part), failed}));
}

/// What is left on the session's own node, as if it came over a link.
class HereReply final : public CallReply {
  public:
    HereReply(caf::actor to, uint64_t claim, uint32_t source) : to_(std::move(to)), claim_(claim), source_(source) {}
    void part(std::string bytes) override {
        if (auto part = decode_left_part(bytes)) tell(to_, claim_, source_, std::move(*part));
    }
    void end(std::optional<Error>) override { tell(to_, claim_, source_, {}); }
    bool cancelled() const override { return false; }

  private:
    const caf::actor to_;
    const uint64_t claim_;
    const uint32_t source_;
};

}  // namespace

void LeftAnswer::said(const LeftName& work, std::string_view text) {
    in_deltas(text, [&](std::string_view piece) { part(LeftDelta{work, std::string(piece)}); });
}

LeftWork::LeftWork(LeftWorkConfig config) : config_(std::move(config)) {
    auto& family = prometheus::BuildCounter()
                       .Name("mainstay_cluster_left_work_total")
                       .Help(
                           "Tool calls and steps of upstream models that were under way when their session's shard "
                           "went to another node, by what became of them.")
                       .Register(*config_.registry);
    for (size_t i = 0; i < counters_.size(); ++i) counters_[i] = &family.Add({{"outcome", count_words[i]}});
}

void LeftWork::serve(std::string_view request, std::shared_ptr<CallReply> reply) {
    auto asked = decode_left_request(request);
    if (!asked) return reply->end(asked.error());
    if (const auto* claim = std::get_if<ClaimLeftWork>(&*asked)) return ask_here(*claim, std::move(reply));
    caf::anon_send(config_.supervisor(), std::get<CancelLeftWork>(*asked));
    reply->end();
}

void LeftWork::ask_here(const ClaimLeftWork& claim, std::shared_ptr<CallReply> reply) {
    caf::anon_send(config_.supervisor(), LeftAskPtr(std::make_shared<LeftAsk>(claim, std::move(reply))));
}

std::vector<LeftWork::Asked> LeftWork::claim(const SessionKey& session, Epoch epoch, uint64_t claim,
                                             const caf::actor& to) {
    const ClaimLeftWork wanted{session, epoch};
    std::vector<Asked> asked{{config_.self, nullptr}};
    ask_here(wanted, std::make_shared<HereReply>(to, claim, 0));
    for (const NodeUuid& node : config_.others())
        asked.push_back({node, ask(node, wanted, claim, uint32_t(asked.size()), to)});
    return asked;
}

std::shared_ptr<LinkCall> LeftWork::claim_again(const NodeUuid& node, const SessionKey& session, Epoch epoch,
                                                uint64_t claim, uint32_t source, const caf::actor& to) {
    const auto others = config_.others();
    if (std::find(others.begin(), others.end(), node) == others.end()) return nullptr;
    return ask(node, {session, epoch}, claim, source, to);
}

/// No deadline: what it waits for has its own, and a link that is silent ends its calls.
std::shared_ptr<LinkCall> LeftWork::ask(const NodeUuid& node, const ClaimLeftWork& wanted, uint64_t claim,
                                        uint32_t source, const caf::actor& to) {
    return config_.call(
        node, encode_left_request(wanted),
        [to, claim, source](const std::string& bytes) {
            auto part = decode_left_part(bytes);
            if (part) return tell(to, claim, source, std::move(*part));
            spdlog::warn("{}", part.error().message);
            tell(to, claim, source, {});
        },
        [to, claim, source](const std::optional<Error>& failure) {
            // One that is refused as a whole is refused again.
            const bool failed = failure && failure->code != ErrorCode::peer_refused;
            tell(to, claim, source, {}, failed);
        },
        0);
}

void LeftWork::cancel(const NodeUuid& at, const CancelLeftWork& cancel) {
    if (at == config_.self) return caf::anon_send(config_.supervisor(), cancel);
    // If it does not arrive, the work ends by its own deadline, and nobody takes its outcome.
    config_.call(
        at, encode_left_request(cancel), [](const std::string&) {}, [](const std::optional<Error>&) {}, notice_ms);
}

}  // namespace mainstay
