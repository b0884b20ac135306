#pragma once
// What operators ask of accelerator workers: which there are, everything that is known of one, and to let one rest.
// Figures of a simulated device are labelled simulated where they stand, and power is always named as assumed.
// Door thread only.

#include "gateway/bridge.h"
#include "gateway/routes.h"

namespace mainstay {

class Workers {
  public:
    /// Registers its routes; both outlive it.
    Workers(Bridge& bridge, Routes& routes);

  private:
    void list(const HttpRequest& request, const Reply& reply);
    void read(const HttpRequest& request, const PathParams& params, const Reply& reply);
    void drain(const HttpRequest& request, const PathParams& params, const Reply& reply);

    Bridge& bridge_;
};

}  // namespace mainstay
