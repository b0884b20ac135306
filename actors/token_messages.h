#pragma once
// Messages between a model's token scheduler, its accelerator workers and its KV tier. Immutable behind shared
// pointers, as in messages.h; what a worker reports names the incarnation that it is, so that a worker that was given
// up cannot speak for its successor.

#include <atomic>
#include <caf/actor.hpp>
#include <caf/allowed_unsafe_message_type.hpp>
#include <caf/atom.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "actors/messages.h"
#include "actors/worker_info.h"
#include "runtime/inference/device.h"
#include "runtime/inference/generation.h"
#include "runtime/inference/own_device.h"
#include "runtime/inference/scheduler.h"
#include "runtime/store/lmdb_kv.h"

namespace mainstay {

using BytesPtr = std::shared_ptr<const std::string>;

/// A model step that somebody waits for. `cancelled` is set by whoever cancels: from then on the sink is left alone.
struct ModelCall {
    uint64_t request_id = 0;
    bool stream = false;
    std::shared_ptr<ModelSink> sink;
    std::atomic<bool> cancelled{false};
};
using ModelCallPtr = std::shared_ptr<ModelCall>;

// --- to the token scheduler
// --------------------------------------------------------------------------------------------
/// `generation` is empty where the model was not loaded when the step was submitted: then `request` is whole.
struct GenerateStep {
    ModelCallPtr call;
    std::optional<Generation> generation;
    ModelRequest request;
};
using GenerateStepPtr = std::shared_ptr<GenerateStep>;
struct CancelStep {
    uint64_t request_id = 0;
};
struct PauseStep {
    uint64_t request_id = 0;
};
struct SessionRests {
    SessionKey key;
};
struct SessionGone {
    SessionKey key;
};
struct ModelLoaded {
    Result<LoadedModel> model;
};
using ModelLoadedPtr = std::shared_ptr<ModelLoaded>;
struct ReadModel {
    ReplyTo<ModelInfo> done;
};
using ReadModelPtr = std::shared_ptr<ReadModel>;
struct DrainWorker {
    uint32_t index = 0;
    bool on = true;
    ReplyTo<ModelInfo> done;
};
using DrainWorkerPtr = std::shared_ptr<DrainWorker>;

// --- KV blocks to and from other nodes (actors/kv_transfer)
// --------------------------------------------------------------------------------------------
struct KvHoldings {
    std::string model_hash, kv_format;  // whose bits they are; empty: the model is not there yet
    uint32_t block_tokens = 0;
    uint64_t block_bytes = 0;
    std::vector<BlockName> blocks;  // in the order of Scheduler::holdings
};
struct ListKv {
    std::function<bool(const SessionKey&)> wanted;
    uint64_t bytes_max = 0;
    ReplyTo<KvHoldings> done;
};
using ListKvPtr = std::shared_ptr<ListKv>;
struct BlockExported {
    KvHash hash{};
    BytesPtr bytes;  // null: it could not be exported
};
/// The bytes of these, wherever they are.
struct ExportKv {
    std::vector<KvHash> hashes;
    ReplyTo<std::vector<BlockExported>> done;  // in the order asked
};
using ExportKvPtr = std::shared_ptr<ExportKv>;
/// Blocks of another node. Without bytes: which of them would be taken?
struct TakeKv {
    std::string model_hash, kv_format;
    uint32_t block_tokens = 0;
    std::vector<BlockName> blocks;
    std::vector<std::string> bytes;
    ReplyTo<std::vector<KvOutcome>> done;  // of each block
};
using TakeKvPtr = std::shared_ptr<TakeKv>;
/// What became of blocks that were listed.
struct CountKv {
    KvTransferFigures more;
};

/// Which worker speaks.
struct WorkerTag {
    uint32_t index = 0, incarnation = 0;
};
struct DeviceOpened {
    WorkerTag worker;
    std::variant<DeviceCaps, Error> outcome;
};
using DeviceOpenedPtr = std::shared_ptr<DeviceOpened>;
struct BlockImported {
    BlockLoad load;
    bool ok = false;
};
struct DeviceWorkDone {
    WorkerTag worker;
    std::vector<BlockExported> exported;
    std::vector<BlockExported> sent;  // RunDeviceWork::exports
    std::vector<BlockImported> imported;
    std::variant<std::monostate, StepResult, DeviceError> step;  // nothing: the work had none
};
using DeviceWorkDonePtr = std::shared_ptr<DeviceWorkDone>;
struct KvFound {
    std::vector<KvBlock> blocks;  // on disk at start, without bytes
    bool open = true;
};
using KvFoundPtr = std::shared_ptr<KvFound>;
struct KvStored {
    std::vector<KvHash> hashes;
    bool ok = true;
    std::vector<KvHash> evicted;
};
using KvStoredPtr = std::shared_ptr<KvStored>;
struct KvLost {
    std::vector<KvHash> hashes;
};
using KvLostPtr = std::shared_ptr<KvLost>;
/// Answers ReadBlocks.
struct KvRead {
    std::vector<BlockExported> blocks;
};
using KvReadPtr = std::shared_ptr<KvRead>;

// --- to an accelerator worker
// --------------------------------------------------------------------------------------------
struct BlockImport {
    BlockLoad load;
    BytesPtr bytes;  // null: they could not be found, or are still to be fetched from the disk
};
struct RunDeviceWork {
    std::vector<BlockSave> saves;
    std::vector<BlockCopy> copies;
    std::vector<BlockImport> imports;
    std::vector<BlockSave> exports;
    std::optional<Step> step;
};
using RunDeviceWorkPtr = std::shared_ptr<RunDeviceWork>;
// --- to the KV tier
// --------------------------------------------------------------------------------------------------------
struct StoreBlocks {
    std::vector<KvBlock> blocks;
};
using StoreBlocksPtr = std::shared_ptr<StoreBlocks>;
/// Work that needs bytes from the disk goes by way of the tier, whole: imports must not come after later work.
struct FetchForWork {
    caf::actor worker;
    RunDeviceWorkPtr work;
};
using FetchForWorkPtr = std::shared_ptr<FetchForWork>;
/// For another node.
struct ReadBlocks {
    std::vector<KvHash> hashes;
};
using ReadBlocksPtr = std::shared_ptr<ReadBlocks>;
struct EraseBlocks {
    std::vector<KvHash> hashes;
};
using EraseBlocksPtr = std::shared_ptr<EraseBlocks>;

using start_atom = caf::atom_constant<caf::atom("start")>;
using advance_atom = caf::atom_constant<caf::atom("advance")>;
using watch_atom = caf::atom_constant<caf::atom("watch")>;

}  // namespace mainstay

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::GenerateStepPtr)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::CancelStep)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::PauseStep)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::SessionRests)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::SessionGone)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::ModelLoadedPtr)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::ReadModelPtr)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::DrainWorkerPtr)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::DeviceOpenedPtr)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::DeviceWorkDonePtr)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::KvFoundPtr)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::KvStoredPtr)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::KvLostPtr)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::KvReadPtr)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::ReadBlocksPtr)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::ListKvPtr)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::ExportKvPtr)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::TakeKvPtr)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::CountKv)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::RunDeviceWorkPtr)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::StoreBlocksPtr)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::FetchForWorkPtr)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(mainstay::EraseBlocksPtr)
