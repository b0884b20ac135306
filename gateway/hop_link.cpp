#include "gateway/hop_link.h"

namespace mainstay {

std::shared_ptr<LinkCall> LinkHopCaller::call(const NodeUuid& to, std::string request,
                                              std::function<void(std::string part)> on_part,
                                              std::function<void(std::optional<Error>)> on_end) {
    return link_.call(to, CallKind::hop, std::move(request), std::move(on_part), std::move(on_end), 0);
}

}  // namespace mainstay
