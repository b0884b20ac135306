#pragma once
// POST and GET /v1/responses: a turn asked for, streamed, read and cancelled. Door thread only.

#include "gateway/bridge.h"
#include "gateway/response_object.h"
#include "gateway/routes.h"

namespace mainstay {

class Responses {
  public:
    /// Registers its routes; both outlive it.
    Responses(Bridge& bridge, Routes& routes);

  private:
    void create(const HttpRequest& request, const Reply& reply);
    void stream(TurnRequest turn, const Reply& reply);
    void replay(const HttpRequest& request, const ResponseId& id, const Reply& reply);
    void read(const HttpRequest& request, const PathParams& params, const Reply& reply);
    void cancel(const HttpRequest& request, const PathParams& params, const Reply& reply);
    void input_items(const HttpRequest& request, const PathParams& params, const Reply& reply);
    Answer answer_of(const Result<TurnAnswer>& result);

    Bridge& bridge_;
    ResponseObject objects_;
};

}  // namespace mainstay
