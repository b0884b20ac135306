#include "actors/tool_worker.h"

#include <caf/send.hpp>

#include "runtime/tool/builtin.h"

namespace mainstay {

caf::behavior tool_worker(caf::event_based_actor* self, NodeContext* node) {
    return {
        [self, node](const RunToolCallPtr& run) {
            const auto session = run->session;
            if (run->call.server_label == builtin_label && is_memory_tool(run->call.name))
                return self->send(node->user_memories, run);
            if (run->call.server_label == builtin_label) {
                const auto action = plan_builtin(run->call.name, run->call.arguments);
                ToolOutcome outcome;
                outcome.output = action.text;
                outcome.is_error = action.is_error;
                self->send(session, std::make_shared<ToolSettled>(ToolSettled{run->call.call_id, std::move(outcome)}));
                return;
            }
            node->tools.call(std::move(run->call), [session](uint64_t call_id, ToolOutcome outcome) {
                caf::anon_send(session, std::make_shared<ToolSettled>(ToolSettled{call_id, std::move(outcome)}));
            });
        },
        [self](drain_atom) { self->quit(); },
    };
}

}  // namespace mainstay
