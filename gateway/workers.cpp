#include "gateway/workers.h"

#include <charconv>

#include "gateway/error_table.h"
#include "gateway/json_writer.h"
#include "gateway/request_json.h"

namespace mainstay {
namespace {

constexpr size_t decisions_shown_max = 100;

/// The short form, without the closing brace: what a list has of each.
void append_worker(JsonWriter& writer, const ModelInfo& model, const WorkerInfo& worker) {
    const DeviceView& device = worker.device;
    writer.raw("{\"object\":\"worker\",\"name\":").string(worker.name);
    writer.raw(",\"model\":").string(model.model).raw(",\"index\":").number(uint64_t{worker.index});
    writer.raw(",\"state\":").string(to_string(worker.state)).raw(",\"problem\":").string_or_null(worker.problem);
    writer.raw(",\"losses\":").number(uint64_t{worker.losses});
    writer.raw(",\"device\":{\"kind\":").string(worker.kind);
    writer.raw(",\"hardware\":").string_or_null(worker.hardware);
    writer.raw(",\"kernel\":").string_or_null(worker.kernel_id);
    writer.raw(",\"simulated\":").boolean(worker.simulated);
    writer.raw("},\"batch\":{\"running\":").number(uint64_t{device.running});
    writer.raw(",\"rows_max\":").number(uint64_t{device.rows_max}).raw(",\"busy\":").boolean(device.busy);
    writer.raw("},\"totals\":{\"steps\":").number(device.steps).raw(",\"rows\":").number(device.rows);
    writer.raw(",\"tokens\":").number(device.tokens).raw(",\"padded_tokens\":").number(device.padded_tokens);
    writer.raw(",\"busy_seconds\":").number(device.wall_s);
    writer.raw("},\"accelerator\":{\"seconds\":").number(device.device_s);
    writer.raw(",\"joules\":").number(device.joules).raw(",\"simulated\":").boolean(worker.simulated);
    writer.raw(",\"power\":\"assumed\"},\"kv_blocks\":{\"total\":").number(uint64_t{device.blocks_total});
    writer.raw(",\"free\":").number(uint64_t{device.blocks_free});
    writer.raw(",\"cached\":").number(uint64_t{device.blocks_cached}).raw("}");
}

void append_tier(JsonWriter& writer, KvTier tier, uint64_t blocks, uint64_t blocks_max, uint64_t hits) {
    writer.raw("{\"tier\":").string(to_string(tier)).raw(",\"blocks\":").number(blocks);
    writer.raw(",\"blocks_max\":").number(blocks_max).raw(",\"hit_blocks\":").number(hits).raw("}");
}

void append_model(JsonWriter& writer, const ModelInfo& model) {
    const SchedulerView& view = model.scheduler;
    uint64_t used = 0, total = 0;
    for (const WorkerInfo& worker : model.workers) {
        total += worker.device.blocks_total;
        used += worker.device.blocks_total - worker.device.blocks_free;
    }
    writer.raw("{\"state\":").string(to_string(model.state)).raw(",\"problem\":").string_or_null(model.problem);
    writer.raw(",\"context_max\":").number(uint64_t{model.context_max});
    writer.raw(",\"sequences\":{\"waiting\":").number(uint64_t{view.waiting});
    writer.raw(",\"running\":").number(uint64_t{view.running}).raw(",\"submitted\":").number(view.submitted);
    writer.raw(",\"refused\":").number(view.refused).raw(",\"placed\":").number(view.placed);
    writer.raw(",\"ended\":").number(view.ended).raw(",\"preempted\":").number(view.preempted);
    writer.raw(",\"requeued\":").number(view.requeued).raw(",\"stale_results\":").number(view.stale_results);
    writer.raw("},\"tokens\":{\"prefilled\":").number(view.prefilled_tokens);
    writer.raw(",\"cached\":").number(view.cached_tokens).raw(",\"generated\":").number(view.generated_tokens);
    writer.raw("},\"kv\":{\"block_tokens\":").number(uint64_t{model.block_tokens});
    writer.raw(",\"block_bytes\":").number(model.block_bytes).raw(",\"tiers\":[");
    append_tier(writer, KvTier::device, used, total, view.pool.device_hit_blocks);
    append_tier(writer.raw(","), KvTier::host, view.pool.host_blocks, model.host_blocks_max, view.pool.host_hit_blocks);
    append_tier(writer.raw(","), KvTier::disk, view.pool.disk_blocks, model.disk_blocks_max, view.pool.disk_hit_blocks);
    writer.raw("],\"evicted_device\":").number(view.pool.evicted_device);
    writer.raw(",\"evicted_host\":").number(view.pool.evicted_host).raw(",\"saved\":").number(view.pool.saved);
    writer.raw(",\"save_failed\":").number(view.pool.save_failed).raw(",\"loaded\":").number(view.pool.loaded);
    writer.raw(",\"load_failed\":").number(view.pool.load_failed);
    writer.raw(",\"stores_pending\":").number(uint64_t{model.stores_pending});
    writer.raw(",\"transfer\":{\"sent_bytes\":").number(model.transfer.sent_bytes);
    writer.raw(",\"received_blocks\":").number(model.transfer.received_blocks);
    writer.raw(",\"received_bytes\":").number(model.transfer.received_bytes).raw(",\"blocks\":{");
    for (size_t i = 0; i < kv_outcomes; ++i)
        writer.raw(i > 0 ? "," : "").string(to_string(KvOutcome(i))).raw(":").number(model.transfer.blocks[i]);
    writer.raw("}}}}");
}

/// Those of this worker, and those of none, which may have concerned it; newest last.
void append_decisions(JsonWriter& writer, const ModelInfo& model, const WorkerInfo& worker) {
    std::vector<const ModelInfo::DecisionEntry*> shown;
    for (auto entry = model.decisions.rbegin(); entry != model.decisions.rend(); ++entry)
        if (shown.size() < decisions_shown_max && (entry->worker.empty() || entry->worker == worker.name))
            shown.push_back(&*entry);
    writer.raw("[");
    for (auto entry = shown.rbegin(); entry != shown.rend(); ++entry) {
        if (entry != shown.rbegin()) writer.raw(",");
        writer.raw("{\"at_ms\":").number(uint64_t((*entry)->at)).raw(",\"decision\":").string((*entry)->kind);
        writer.raw(",\"session\":").string_or_null((*entry)->session);
        writer.raw(",\"worker\":").string_or_null((*entry)->worker);
        writer.raw(",\"reason\":").string((*entry)->reason).raw("}");
    }
    writer.raw("]");
}

Answer worker_answer(const ModelInfo& model, const WorkerInfo& worker) {
    Answer answer;
    JsonWriter writer(answer.body);
    append_worker(writer, model, worker);
    writer.raw(",\"model_figures\":");
    append_model(writer, model);
    writer.raw(",\"decisions\":");
    append_decisions(writer, model, worker);
    writer.raw("}");
    return answer;
}

/// Names what there is, so that a typing error shows itself.
Answer no_worker(const PathParams& params, const std::vector<ModelInfo>& models) {
    std::string message = "There is no worker '" + quoted_back(params[0] + "/" + params[1]) + "'; there ";
    std::string names;
    for (const ModelInfo& model : models)
        for (const WorkerInfo& worker : model.workers) names += (names.empty() ? "" : ", ") + worker.name;
    message += names.empty() ? "are none: no model runs on a device of our own." : "are: " + names + ".";
    return error_answer(ErrorCode::not_found, message, "worker");
}

std::optional<uint32_t> index_of(const std::string& text) {
    uint32_t index = 0;
    const char* end = text.data() + text.size();
    const auto read = std::from_chars(text.data(), end, index);
    if (read.ec != std::errc() || read.ptr != end || std::to_string(index) != text) return std::nullopt;
    return index;
}

}  // namespace

Workers::Workers(Bridge& bridge, Routes& routes) : bridge_(bridge) {
    routes.add(HttpMethod::get, "/v1/workers",
               [this](const HttpRequest& request, const PathParams&, const Reply& reply) { list(request, reply); });
    routes.add(HttpMethod::get, "/v1/workers/*/*",
               [this](const HttpRequest& request, const PathParams& params, const Reply& reply) {
                   read(request, params, reply);
               });
    routes.add(HttpMethod::post, "/v1/workers/*/*/drain",
               [this](const HttpRequest& request, const PathParams& params, const Reply& reply) {
                   drain(request, params, reply);
               });
}

void Workers::list(const HttpRequest& request, const Reply& reply) {
    using Models = std::vector<ModelInfo>;
    bridge_.list_workers(request.principal, reply.then<Models>([](Result<Models> models) {
        if (!models) return error_answer(models.error());
        Answer answer;
        JsonWriter writer(answer.body);
        writer.raw("{\"object\":\"list\",\"data\":[");
        bool first = true;
        for (const ModelInfo& model : *models)
            for (const WorkerInfo& worker : model.workers) {
                if (!std::exchange(first, false)) writer.raw(",");
                append_worker(writer, model, worker);
                writer.raw("}");
            }
        writer.raw("]}");
        return answer;
    }));
}

void Workers::read(const HttpRequest& request, const PathParams& params, const Reply& reply) {
    using Models = std::vector<ModelInfo>;
    bridge_.list_workers(request.principal, reply.then<Models>([params](Result<Models> models) {
        if (!models) return error_answer(models.error());
        const std::string name = params[0] + "/" + params[1];
        for (const ModelInfo& model : *models)
            for (const WorkerInfo& worker : model.workers)
                if (worker.name == name) return worker_answer(model, worker);
        return no_worker(params, *models);
    }));
}

void Workers::drain(const HttpRequest& request, const PathParams& params, const Reply& reply) {
    JsonBody document;
    if (auto ok = document.parse(request.body.empty() ? "{}" : request.body); !ok) {
        reply.send(error_answer(ok.error()));
        return;
    }
    FieldReader fields(document.object(), "");
    const bool undo = fields.boolean("undo").value_or(false);
    for (const auto& member : document.object()) {
        if (member.key() == "undo") continue;
        const auto shown = quoted_back(member.key());
        fields.fail(Error{ErrorCode::unknown_field, "Unknown field '" + shown + "'.", shown});
    }
    if (fields.failed()) {
        reply.send(error_answer(fields.take_error()));
        return;
    }
    const auto index = index_of(params[1]);
    if (!index) {
        read(request, params, reply);  // which finds nothing and names what there is
        return;
    }
    bridge_.drain_worker(request.principal, params[0], *index, !undo,
                         reply.then<ModelInfo>([index = *index](Result<ModelInfo> model) {
                             if (!model) return error_answer(model.error());
                             for (const WorkerInfo& worker : model->workers)
                                 if (worker.index == index) return worker_answer(*model, worker);
                             return dropped_answer();
                         }));
}

}  // namespace mainstay
