#include "runtime/inference/nrt_protocol.h"

#include <capnp/message.h>
#include <capnp/serialize.h>
#include <kj/exception.h>

#include <cstring>

#include "runtime/base/limits.h"
#include "schema/inference.capnp.h"

namespace mainstay {

namespace {

constexpr char magic[4] = {'M', 'N', 'R', 'T'};

/// Thrown and caught in this file.
struct Malformed {
    const char* what;
};

kj::StringPtr text(const std::string& value) { return {value.data(), value.size()}; }
std::string copy(capnp::Text::Reader value) { return {value.begin(), value.size()}; }
capnp::Data::Reader data(const std::string& value) {
    return {reinterpret_cast<const kj::byte*>(value.data()), value.size()};
}
std::string copy(capnp::Data::Reader value) { return {reinterpret_cast<const char*>(value.begin()), value.size()}; }

template <class List, class T>
void fill(List to, const T& from) {
    for (unsigned i = 0; i < from.size(); ++i) to.set(i, from[i]);
}
/// A few bytes can claim many elements, which cost memory only here.
template <class List>
List bounded(List list, size_t most) {
    if (list.size() > most) throw Malformed{"a list is too long"};
    return list;
}
template <class T, class List>
std::vector<T> copy_list(List from, size_t most) {
    bounded(from, most);
    std::vector<T> out;
    out.reserve(from.size());
    for (const auto value : from) out.push_back(value);
    return out;
}

template <class Enum>
Enum checked(uint16_t value, Enum last) {
    if (value > uint16_t(last)) throw Malformed{"an enumerator is out of range"};
    return Enum(value);
}

void put(wire::DeviceCaps::Builder to, const DeviceCaps& caps) {
    to.setKind(text(caps.kind));
    to.setHardware(text(caps.hardware));
    to.setSimulated(caps.simulated);
    to.setModelHash(text(caps.model_hash));
    to.setKernelId(text(caps.kernel_id));
    to.setKvFormat(text(caps.kv_format));
    to.setVocabulary(caps.vocabulary);
    to.setBlockTokens(caps.block_tokens);
    to.setBlockCount(caps.block_count);
    to.setBlockBytes(caps.block_bytes);
    to.setContextMax(caps.context_max);
    to.setRowsMax(caps.rows_max);
    to.setTokensMax(caps.tokens_max);
    to.setPrefillsMax(caps.prefills_max);
    to.setMixedSteps(caps.mixed_steps);
    to.setStrict(caps.strict);
    fill(to.initPrefillBuckets(unsigned(caps.prefill_buckets.size())), caps.prefill_buckets);
    fill(to.initDecodeBuckets(unsigned(caps.decode_buckets.size())), caps.decode_buckets);
    fill(to.initContextBuckets(unsigned(caps.context_buckets.size())), caps.context_buckets);
    to.setKvExport(caps.kv_export);
    to.setLogitMask(caps.logit_mask);
    to.setDeterministic(caps.deterministic);
}

DeviceCaps get(wire::DeviceCaps::Reader from) {
    DeviceCaps caps;
    caps.kind = copy(from.getKind());
    caps.hardware = copy(from.getHardware());
    caps.simulated = from.getSimulated();
    caps.model_hash = copy(from.getModelHash());
    caps.kernel_id = copy(from.getKernelId());
    caps.kv_format = copy(from.getKvFormat());
    caps.vocabulary = from.getVocabulary();
    caps.block_tokens = from.getBlockTokens();
    caps.block_count = from.getBlockCount();
    caps.block_bytes = from.getBlockBytes();
    caps.context_max = from.getContextMax();
    caps.rows_max = from.getRowsMax();
    caps.tokens_max = from.getTokensMax();
    caps.prefills_max = from.getPrefillsMax();
    caps.mixed_steps = from.getMixedSteps();
    caps.strict = from.getStrict();
    caps.prefill_buckets = copy_list<uint32_t>(from.getPrefillBuckets(), limits::device_tokens_max);
    caps.decode_buckets = copy_list<uint32_t>(from.getDecodeBuckets(), limits::device_rows_max);
    caps.context_buckets = copy_list<uint32_t>(from.getContextBuckets(), limits::nrt_graphs_max);
    caps.kv_export = from.getKvExport();
    caps.logit_mask = from.getLogitMask();
    caps.deterministic = from.getDeterministic();
    return caps;
}

void put(wire::DeviceStep::Builder to, const Step& step) {
    to.setId(step.id);
    to.setKind(uint16_t(step.kind));
    to.setTokenBucket(step.token_bucket);
    to.setRowBucket(step.row_bucket);
    to.setContextBucket(step.context_bucket);
    auto rows = to.initRows(unsigned(step.rows.size()));
    for (unsigned r = 0; r < step.rows.size(); ++r) {
        const StepRow& row = step.rows[r];
        auto out = rows[r];
        out.setSequence(row.sequence);
        out.setEpoch(row.epoch);
        fill(out.initTokens(unsigned(row.tokens.size())), row.tokens);
        out.setPosition(row.position);
        fill(out.initBlockTable(unsigned(row.block_table.size())), row.block_table);
        out.setWantToken(row.want_token);
        out.setWantLogits(row.want_logits);
        out.setTemperature(row.sampling.temperature);
        out.setTopK(row.sampling.top_k);
        out.setTopP(row.sampling.top_p);
        out.setSeed(row.seed);
        fill(out.initAllowed(unsigned(row.allowed.size())), row.allowed);
    }
}

Step get(wire::DeviceStep::Reader from) {
    Step step;
    step.id = from.getId();
    step.kind = checked(from.getKind(), StepKind::mixed);
    step.token_bucket = from.getTokenBucket();
    step.row_bucket = from.getRowBucket();
    step.context_bucket = from.getContextBucket();
    for (const auto row : bounded(from.getRows(), limits::device_rows_max)) {
        StepRow& out = step.rows.emplace_back();
        out.sequence = row.getSequence();
        out.epoch = row.getEpoch();
        out.tokens = copy_list<TokenId>(row.getTokens(), limits::device_tokens_max);
        out.position = row.getPosition();
        out.block_table = copy_list<BlockId>(row.getBlockTable(), limits::model_context_max);
        out.want_token = row.getWantToken();
        out.want_logits = row.getWantLogits();
        out.sampling = {row.getTemperature(), row.getTopK(), row.getTopP()};
        out.seed = row.getSeed();
        out.allowed = copy_list<uint64_t>(row.getAllowed(), limits::model_vocabulary_max / 64);
    }
    return step;
}

void put(wire::DeviceStepResult::Builder to, const StepResult& result) {
    auto rows = to.initRows(unsigned(result.rows.size()));
    for (unsigned r = 0; r < result.rows.size(); ++r) {
        const RowResult& row = result.rows[r];
        rows[r].setHasToken(row.token.has_value());
        rows[r].setToken(row.token.value_or(0));
        fill(rows[r].initLogits(unsigned(row.logits.size())), row.logits);
    }
    const StepCost& cost = result.cost;
    to.setWallSeconds(cost.wall_s);
    to.setDeviceSeconds(cost.device_s);
    to.setJoules(cost.joules);
    to.setFlops(cost.flops);
    to.setBytes(cost.bytes);
    to.setTokens(cost.tokens);
    to.setPaddedTokens(cost.padded_tokens);
    to.setContextTokens(cost.context_tokens);
    to.setPaddedContext(cost.padded_context);
}

NrtStepped get(wire::DeviceStepResult::Reader from) {
    NrtStepped out;
    size_t count = 0;
    for (const auto row : bounded(from.getRows(), limits::device_rows_max)) count += row.getLogits().size();
    if (count > nrt_logits_max) throw Malformed{"too many logits"};
    out.logits.reserve(count);  // the spans below look into it
    for (const auto row : from.getRows()) {
        RowResult& result = out.result.rows.emplace_back();
        if (row.getHasToken()) result.token = row.getToken();
        const size_t first = out.logits.size();
        for (const float value : row.getLogits()) out.logits.push_back(value);
        result.logits = std::span<const float>(out.logits).subspan(first);
    }
    StepCost& cost = out.result.cost;
    cost.wall_s = from.getWallSeconds();
    cost.device_s = from.getDeviceSeconds();
    cost.joules = from.getJoules();
    cost.flops = from.getFlops();
    cost.bytes = from.getBytes();
    cost.tokens = from.getTokens();
    cost.padded_tokens = from.getPaddedTokens();
    cost.context_tokens = from.getContextTokens();
    cost.padded_context = from.getPaddedContext();
    return out;
}

void put(wire::DeviceFailure::Builder to, const DeviceError& error) {
    to.setAction(uint16_t(error.action));
    to.setFault(uint16_t(error.fault));
    to.setMessage(text(error.message));
    to.setHasRow(error.row.has_value());
    to.setRow(error.row.value_or(0));
    to.setStatus(error.status);
}

DeviceError get(wire::DeviceFailure::Reader from) {
    DeviceError error;
    error.action = checked(from.getAction(), DeviceAction::restart_worker);
    error.fault = checked(from.getFault(), DeviceFault::unsupported);
    error.message = copy(from.getMessage());
    if (from.getHasRow()) error.row = from.getRow();
    error.status = from.getStatus();
    return error;
}

Error get_error(wire::DeviceReply::NotOpened::Reader from) {
    const ErrorInfo* info = find_error(copy(from.getCode()));
    if (!info) throw Malformed{"an error code is unknown"};
    return {info->code, copy(from.getMessage()), copy(from.getParam())};
}

std::string frame_of(capnp::MessageBuilder& message) {
    const auto words = capnp::messageToFlatArray(message);
    const auto bytes = words.asBytes();
    if (bytes.size() > limits::nrt_frame_bytes_max) return {};
    std::string out(magic, sizeof magic);
    for (unsigned i = 0; i < 4; ++i) out.push_back(char(bytes.size() >> (8 * i)));
    out.append(reinterpret_cast<const char*>(bytes.begin()), bytes.size());
    return out;
}

/// Calls `read` with the root of a message. Whatever Cap'n Proto thinks of the bytes ends here.
template <class Root, class Read>
auto decode(std::string_view bytes, Read&& read) -> Result<decltype(read(typename Root::Reader()))> {
    const auto failed = [](std::string why) { return Error{ErrorCode::internal, "no message: " + why, ""}; };
    if (bytes.size() % sizeof(capnp::word) != 0) return failed("no whole words");
    try {
        auto words = kj::heapArray<capnp::word>(bytes.size() / sizeof(capnp::word));
        std::memcpy(words.begin(), bytes.data(), bytes.size());
        capnp::ReaderOptions options;
        // Lists are looked at twice; what they cost is bounded where they are copied.
        options.traversalLimitInWords = 4 * limits::nrt_frame_bytes_max / sizeof(capnp::word);
        options.nestingLimit = 8;
        capnp::FlatArrayMessageReader message(words, options);
        return read(message.getRoot<Root>());
    } catch (const Malformed& problem) {
        return failed(problem.what);
    } catch (const kj::Exception& problem) {
        return failed(problem.getDescription().cStr());
    } catch (const std::exception& problem) {
        return failed(problem.what());
    }
}

}  // namespace

std::string encode_nrt_request(const NrtRequest& request) {
    capnp::MallocMessageBuilder message;
    auto root = message.initRoot<wire::DeviceRequest>();
    root.setCall(request.call);
    if (const auto* step = std::get_if<Step>(&request.what)) {
        put(root.initStep(), *step);
    } else if (const auto* copies = std::get_if<std::vector<BlockCopy>>(&request.what)) {
        auto list = root.initCopyBlocks(unsigned(copies->size()));
        for (unsigned i = 0; i < copies->size(); ++i) {
            list[i].setFrom((*copies)[i].from);
            list[i].setTo((*copies)[i].to);
        }
    } else if (const auto* block = std::get_if<NrtExportBlock>(&request.what)) {
        auto group = root.initExportBlock();
        group.setBlock(block->block);
        group.setTokens(block->tokens);
    } else {
        const auto& import = std::get<NrtImportBlock>(request.what);
        if (import.bytes.size() > limits::nrt_frame_bytes_max) return {};
        auto group = root.initImportBlock();
        group.setInto(import.block);
        group.setBytes(data(import.bytes));
    }
    return frame_of(message);
}

std::string encode_nrt_reply(const NrtReply& reply) {
    capnp::MallocMessageBuilder message;
    auto root = message.initRoot<wire::DeviceReply>();
    root.setCall(reply.call);
    if (const auto* ready = std::get_if<NrtReady>(&reply.what)) {
        auto group = root.initReady();
        group.setVersion(text(ready->version));
        put(group.initCaps(), ready->caps);
    } else if (const auto* error = std::get_if<Error>(&reply.what)) {
        auto group = root.initNotOpened();
        const std::string code(error_name(error->code));
        group.setCode(text(code));
        group.setMessage(text(error->message));
        group.setParam(text(error->param));
    } else if (const auto* failed = std::get_if<DeviceError>(&reply.what)) {
        put(root.initFailed(), *failed);
    } else if (const auto* stepped = std::get_if<NrtStepped>(&reply.what)) {
        put(root.initStepped(), stepped->result);
    } else if (const auto* exported = std::get_if<NrtExported>(&reply.what)) {
        if (exported->bytes.size() > limits::nrt_frame_bytes_max) return {};
        root.setExported(data(exported->bytes));
    } else if (const auto* imported = std::get_if<NrtImported>(&reply.what)) {
        root.setImported(imported->tokens);
    } else {
        root.setDone();
    }
    return frame_of(message);
}

Result<size_t> nrt_frame_bytes(std::string_view header) {
    if (header.size() != nrt_frame_header_bytes || header.substr(0, sizeof magic) != std::string_view(magic, 4))
        return Error{ErrorCode::internal, "no frame begins here", ""};
    size_t bytes = 0;
    for (unsigned i = 0; i < 4; ++i) bytes |= size_t(uint8_t(header[4 + i])) << (8 * i);
    if (bytes > limits::nrt_frame_bytes_max || bytes % sizeof(capnp::word) != 0)
        return Error{ErrorCode::internal, "a frame of " + std::to_string(bytes) + " bytes", ""};
    return bytes;
}

Result<NrtRequest> decode_nrt_request(std::string_view bytes) {
    return decode<wire::DeviceRequest>(bytes, [](wire::DeviceRequest::Reader root) {
        NrtRequest out;
        out.call = root.getCall();
        switch (root.which()) {
            case wire::DeviceRequest::STEP: out.what = get(root.getStep()); return out;
            case wire::DeviceRequest::COPY_BLOCKS: {
                std::vector<BlockCopy> copies;
                for (const auto one : bounded(root.getCopyBlocks(), limits::device_blocks_max))
                    copies.push_back({one.getFrom(), one.getTo()});
                out.what = std::move(copies);
                return out;
            }
            case wire::DeviceRequest::EXPORT_BLOCK:
                out.what = NrtExportBlock{root.getExportBlock().getBlock(), root.getExportBlock().getTokens()};
                return out;
            case wire::DeviceRequest::IMPORT_BLOCK:
                out.what = NrtImportBlock{root.getImportBlock().getInto(), copy(root.getImportBlock().getBytes())};
                return out;
        }
        throw Malformed{"an unknown request"};
    });
}

Result<NrtReply> decode_nrt_reply(std::string_view bytes) {
    return decode<wire::DeviceReply>(bytes, [](wire::DeviceReply::Reader root) {
        NrtReply out;
        out.call = root.getCall();
        switch (root.which()) {
            case wire::DeviceReply::READY:
                out.what = NrtReady{copy(root.getReady().getVersion()), get(root.getReady().getCaps())};
                return out;
            case wire::DeviceReply::NOT_OPENED: out.what = get_error(root.getNotOpened()); return out;
            case wire::DeviceReply::FAILED: out.what = get(root.getFailed()); return out;
            case wire::DeviceReply::STEPPED: out.what = get(root.getStepped()); return out;
            case wire::DeviceReply::DONE: out.what = NrtDone{}; return out;
            case wire::DeviceReply::EXPORTED: out.what = NrtExported{copy(root.getExported())}; return out;
            case wire::DeviceReply::IMPORTED: out.what = NrtImported{root.getImported()}; return out;
        }
        throw Malformed{"an unknown reply"};
    });
}

}  // namespace mainstay
