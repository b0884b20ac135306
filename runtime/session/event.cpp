#include "runtime/session/event.h"

#include "runtime/base/invariant.h"

namespace mainstay {

std::string_view to_word(TurnStatus status) {
    switch (status) {
        case TurnStatus::queued: return "queued";
        case TurnStatus::in_progress: return "in_progress";
        case TurnStatus::completed: return "completed";
        case TurnStatus::failed: return "failed";
        case TurnStatus::incomplete: return "incomplete";
        case TurnStatus::cancelled: return "cancelled";
    }
    INVARIANT(false, "every status has a word");
}

std::string token_bytes(const std::vector<uint32_t>& ids) {
    std::string bytes;
    bytes.reserve(ids.size() * 4);
    for (const uint32_t id : ids)
        for (int shift = 0; shift < 32; shift += 8) bytes.push_back(static_cast<char>(id >> shift));
    return bytes;
}

std::vector<uint32_t> token_ids(std::string_view bytes) {
    std::vector<uint32_t> ids;
    ids.reserve(bytes.size() / 4);
    for (size_t at = 0; at + 4 <= bytes.size(); at += 4) {
        uint32_t id = 0;
        for (size_t i = 0; i < 4; ++i)
            id |= static_cast<uint32_t>(static_cast<unsigned char>(bytes[at + i])) << (8 * i);
        ids.push_back(id);
    }
    return ids;
}

void ModelStepSettled::set_tokens(const StepTokens& tokens) {
    token_ids = token_bytes(tokens.ids);
    tokenizer_hash.assign(tokens.tokenizer.begin(), tokens.tokenizer.end());
    template_version = tokens.template_version;
}

std::shared_ptr<const StepTokens> ModelStepSettled::tokens() const {
    auto tokens = std::make_shared<StepTokens>();
    if (token_ids.empty() || tokenizer_hash.size() != tokens->tokenizer.size()) return nullptr;
    for (size_t i = 0; i < tokenizer_hash.size(); ++i) tokens->tokenizer[i] = static_cast<uint8_t>(tokenizer_hash[i]);
    tokens->template_version = template_version;
    tokens->ids = mainstay::token_ids(token_ids);
    return tokens;
}

std::string_view event_name(const Event& event) {
    static constexpr std::string_view names[] = {
        "SessionCreated", "InputAccepted",   "ModelStepSettled", "ToolIntent",  "ToolReceipt",    "StepFailed",
        "RetryScheduled", "TurnSettled",     "CancelRequested",  "WaitOpened",  "WaitResolved",   "Decision",
        "MemorySet",      "UnknownResolved", "ItemsAdded",       "MetadataSet", "SessionDeleted", "StreamReserved",
        "Compacted",      "Forked",          "StepProgress"};
    static_assert(std::size(names) == std::variant_size_v<Event>);
    return names[event.index()];
}

}  // namespace mainstay
