#include "runtime/inference/nrt_worker.h"

#include <sys/socket.h>

#include <cerrno>
#include <cstdio>
#include <memory>

#include "runtime/base/version.h"
#include "runtime/inference/nrt_device.h"
#include "runtime/inference/nrt_protocol.h"

namespace mainstay {

namespace {

/// False at the end of the channel, wherever it comes.
bool receive(int channel, char* to, size_t bytes) {
    while (bytes > 0) {
        const ssize_t got = ::recv(channel, to, bytes, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return false;
        to += got;
        bytes -= size_t(got);
    }
    return true;
}

bool send_all(int channel, std::string_view bytes) {
    while (!bytes.empty()) {
        const ssize_t sent = ::send(channel, bytes.data(), bytes.size(), MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent <= 0) return false;
        bytes.remove_prefix(size_t(sent));
    }
    return true;
}

bool reply(int channel, const NrtReply& what) {
    std::string frame = encode_nrt_reply(what);
    if (frame.empty())
        frame = encode_nrt_reply({what.call, DeviceError{DeviceAction::fail_request, DeviceFault::unsupported,
                                                         "the answer is too large for one message", std::nullopt, 0}});
    return send_all(channel, frame);
}

NrtReply answer(Device& device, NrtRequest& request) {
    const uint64_t call = request.call;
    if (const auto* step = std::get_if<Step>(&request.what)) {
        auto result = device.run(*step);
        if (!result) return {call, result.error()};
        return {call, NrtStepped{std::move(*result), {}}};
    }
    if (const auto* copies = std::get_if<std::vector<BlockCopy>>(&request.what)) {
        auto result = device.copy_blocks(*copies);
        if (!result) return {call, result.error()};
        return {call, NrtDone{}};
    }
    if (const auto* block = std::get_if<NrtExportBlock>(&request.what)) {
        auto result = device.export_block(block->block, block->tokens);
        if (!result) return {call, result.error()};
        return {call, NrtExported{std::move(*result)}};
    }
    const auto& import = std::get<NrtImportBlock>(request.what);
    auto result = device.import_block(import.block, import.bytes);
    if (!result) return {call, result.error()};
    return {call, NrtImported{*result}};
}

Result<std::unique_ptr<Device>> open(const NrtWorkerOptions& options) {
    auto library = NrtLibrary::open(options.library);
    if (!library) return library.error();
    auto runtime = NrtRuntime::start(*library);
    if (!runtime) return runtime.error();
    return make_nrt_device(*runtime, options.directory);
}

}  // namespace

int serve_device(Device& device, int channel) {
    if (!reply(channel, {0, NrtReady{std::string(build_version()), device.caps()}})) return 0;
    std::string header(nrt_frame_header_bytes, '\0'), bytes;
    while (receive(channel, header.data(), header.size())) {
        const auto size = nrt_frame_bytes(header);
        if (size) bytes.resize(*size);
        if (size && !receive(channel, bytes.data(), bytes.size())) return 0;
        auto request = size ? decode_nrt_request(bytes) : Result<NrtRequest>(size.error());
        if (!request) {
            std::fprintf(stderr, "the channel carried %s\n", request.error().message.c_str());
            return 2;
        }
        if (!reply(channel, answer(device, *request))) return 0;
    }
    return 0;
}

int run_nrt_worker(const NrtWorkerOptions& options) {
    auto device = open(options);
    if (device) return serve_device(**device, options.channel);
    reply(options.channel, {0, device.error()});
    return 1;
}

}  // namespace mainstay
