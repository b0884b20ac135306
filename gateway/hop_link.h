#pragma once
// Hops over the link between nodes. A file of its own, so that doors without a link need none.

#include "gateway/hop.h"

namespace mainstay {

class LinkHopCaller final : public HopCaller {
  public:
    /// `link` outlives it.
    explicit LinkHopCaller(Link& link) : link_(link) {}
    std::shared_ptr<LinkCall> call(const NodeUuid& to, std::string request,
                                   std::function<void(std::string part)> on_part,
                                   std::function<void(std::optional<Error>)> on_end) override;

  private:
    Link& link_;
};

}  // namespace mainstay
