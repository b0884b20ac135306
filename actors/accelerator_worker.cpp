#include "actors/accelerator_worker.h"

#include <caf/send.hpp>

namespace mainstay {
namespace {

BlockImported import_block(Device& device, const BlockImport& import) {
    if (!import.bytes) return {import.load, false};
    auto tokens = device.import_block(import.load.block, *import.bytes);
    // Bytes that are whole but hold another number of tokens are another block: never served.
    return {import.load, tokens.ok() && *tokens == import.load.tokens};
}

void run_work(Device& device, const RunDeviceWork& work, DeviceWorkDone& done) {
    for (const BlockSave& save : work.saves) {
        auto bytes = device.export_block(save.block, save.tokens);
        done.exported.push_back(
            {save.hash, bytes.ok() ? std::make_shared<const std::string>(std::move(*bytes)) : nullptr});
    }
    for (const BlockSave& one : work.exports) {
        auto bytes = device.export_block(one.block, one.tokens);
        done.sent.push_back({one.hash, bytes.ok() ? std::make_shared<const std::string>(std::move(*bytes)) : nullptr});
    }
    if (!work.copies.empty()) {
        if (auto copied = device.copy_blocks(work.copies); !copied.ok()) {
            // Which sequence is to blame cannot be told: the blocks of all of them are doubtful.
            DeviceError error = copied.error();
            error.action = DeviceAction::restart_worker;
            done.step = std::move(error);
            return;
        }
    }
    for (const BlockImport& import : work.imports) done.imported.push_back(import_block(device, import));
    if (!work.step) return;
    auto result = device.run(*work.step);
    if (result.ok())
        done.step = std::move(*result);
    else
        done.step = result.error();
}

}  // namespace

caf::behavior accelerator_worker(caf::stateful_actor<AcceleratorWorkerState>* self, WorkerTag tag, caf::actor scheduler,
                                 OpenDevice open) {
    self->send(self, start_atom::value);
    return {
        [self, tag, scheduler, open = std::move(open)](start_atom) {
            auto opened = std::make_shared<DeviceOpened>(DeviceOpened{tag, Error{}});
            auto device = open();
            if (device.ok()) {
                self->state.device = std::move(*device);
                opened->outcome = self->state.device->caps();
            } else {
                opened->outcome = device.error();
            }
            self->send(scheduler, std::move(opened));
        },
        [self, tag, scheduler](const RunDeviceWorkPtr& work) {
            auto done = std::make_shared<DeviceWorkDone>();
            done->worker = tag;
            run_work(*self->state.device, *work, *done);
            self->send(scheduler, std::move(done));
        },
        [self](drain_atom) { self->quit(); },
    };
}

}  // namespace mainstay
