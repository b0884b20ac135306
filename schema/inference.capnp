@0xd2f6a1c94b7e3085;
# What the daemon and a device's worker process say to each other (docs/formats/nrt_worker.md). Both are of one build;
# nothing of this is ever stored. Enumerations travel as the numbers of runtime/inference/device.h and are checked.
using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("mainstay::wire");

struct DeviceCaps {
  kind @0 :Text;
  hardware @1 :Text;
  simulated @2 :Bool;
  modelHash @3 :Text;
  kernelId @4 :Text;
  kvFormat @5 :Text;
  vocabulary @6 :UInt32;
  blockTokens @7 :UInt32;
  blockCount @8 :UInt32;
  blockBytes @9 :UInt64;
  contextMax @10 :UInt32;
  rowsMax @11 :UInt32;
  tokensMax @12 :UInt32;
  prefillsMax @13 :UInt32;
  mixedSteps @14 :Bool;
  strict @15 :Bool;
  prefillBuckets @16 :List(UInt32);
  decodeBuckets @17 :List(UInt32);
  contextBuckets @18 :List(UInt32);
  kvExport @19 :Bool;
  logitMask @20 :Bool;
  deterministic @21 :Bool;
}

struct DeviceRow {
  sequence @0 :UInt64;
  epoch @1 :UInt64;
  tokens @2 :List(UInt32);
  position @3 :UInt32;
  blockTable @4 :List(Int32);
  wantToken @5 :Bool;
  wantLogits @6 :Bool;
  temperature @7 :Float32;
  topK @8 :UInt32;
  topP @9 :Float32;
  seed @10 :UInt64;
  allowed @11 :List(UInt64);
}

struct DeviceStep {
  id @0 :UInt64;
  kind @1 :UInt16;
  tokenBucket @2 :UInt32;
  rowBucket @3 :UInt32;
  contextBucket @4 :UInt32;
  rows @5 :List(DeviceRow);
}

struct DeviceBlockCopy {
  from @0 :Int32;
  to @1 :Int32;
}

struct DeviceRequest {
  call @0 :UInt64;       # repeated in the reply
  union {
    step @1 :DeviceStep;
    copyBlocks @2 :List(DeviceBlockCopy);
    exportBlock :group {
      block @3 :Int32;
      tokens @4 :UInt32;
    }
    importBlock :group {
      into @5 :Int32;
      bytes @6 :Data;
    }
  }
}

struct DeviceRowResult {
  hasToken @0 :Bool;
  token @1 :UInt32;
  logits @2 :List(Float32);  # empty where none were wanted
}

struct DeviceStepResult {
  rows @0 :List(DeviceRowResult);  # in the order of the step's
  wallSeconds @1 :Float64;
  deviceSeconds @2 :Float64;
  joules @3 :Float64;
  flops @4 :UInt64;
  bytes @5 :UInt64;
  tokens @6 :UInt32;
  paddedTokens @7 :UInt32;
  contextTokens @8 :UInt64;
  paddedContext @9 :UInt64;
}

struct DeviceFailure {
  action @0 :UInt16;
  fault @1 :UInt16;
  message @2 :Text;
  hasRow @3 :Bool;
  row @4 :UInt32;
  status @5 :Int32;
}

struct DeviceReply {
  call @0 :UInt64;       # 0: the first, which answers no request
  union {
    ready :group {       # the device is open
      version @1 :Text;  # of the worker's build
      caps @2 :DeviceCaps;
    }
    notOpened :group {   # it is not, and the worker ends
      code @3 :Text;     # an error code
      message @4 :Text;
      param @5 :Text;
    }
    failed @6 :DeviceFailure;
    stepped @7 :DeviceStepResult;
    done @8 :Void;       # blocks were copied
    exported @9 :Data;
    imported @10 :UInt32;  # tokens
  }
}
