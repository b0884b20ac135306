#include "actors/messages.h"

namespace mainstay {

void refuse(Ask& ask, const Error& error) {
    std::visit(
        [&](auto& body) {
            using T = std::decay_t<decltype(body)>;
            if constexpr (std::is_same_v<T, WakeUp>) {
                if (body.done) body.done();
            } else {
                if constexpr (std::is_same_v<T, SubmitTurn>)
                    if (body.stream) body.stream->send(StreamFailed{error});
                body.done(Error(error));
            }
        },
        ask);
}

}  // namespace mainstay
