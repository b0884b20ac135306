@0xa4f17c93d05be268;
# A model step that another node computes on its devices: the request of a call of kind `modelStep`, and the parts of
# its answer. docs/formats/model_step.md. Fields are only ever added. No float or double anywhere.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("mainstay::wire");
using Session = import "session.capnp";

struct StepSession {
  tenant @0 :UInt32;
  family @1 :UInt64;
  high @2 :UInt64;
  low @3 :UInt64;
}

struct StepTokenIds {
  # What a device sampled in one step.
  tokenizer @0 :Data;           # 16 bytes
  templateVersion @1 :UInt32;
  ids @2 :List(UInt32);
}

struct PromptItem {
  item @0 :Session.Item;
  tokens @1 :StepTokenIds;      # absent: the text says them
}

struct PromptTurn {
  items @0 :List(PromptItem);
}

struct PromptTool {
  name @0 :Text;
  description @1 :Text;
  parameters @2 :Text;          # JSON Schema
  strict @3 :Bool;
}

struct ModelStepCall {
  union {
    unknown @0 :Void;           # what an older release reads of a newer one's
    run :group {
      request @1 :UInt64;       # the caller's name for the step
      model @2 :Text;
      modelVersion @3 :UInt64;
      session @4 :StepSession;
      root @5 :StepSession;
      instructions @6 :Text;
      settled @7 :List(PromptTurn);
      open @8 :List(PromptItem);
      hasTools @9 :Bool;
      tools @10 :List(PromptTool);
      options @11 :Text;        # JSON
      maxOutputTokens @12 :UInt32;
      step @13 :UInt32;
      attempt @14 :UInt32;
      timeoutMs @15 :UInt64;    # that are left until the deadline; 0: none. Clocks of nodes differ
      stream @16 :Bool;
      idempotencyKey @17 :Text;
      resume @18 :StepTokenIds; # absent: from the beginning
    }
    pause @19 :UInt64;          # a step that this caller asked for: end it between two tokens
    rest @20 :StepSession;      # the session sleeps: what memory holds of it may go to disk
  }
}

struct StepToolCall {
  callId @0 :Text;
  name @1 :Text;
  arguments @2 :Text;
}

struct ModelStepPart {
  # Any number of deltas, then one of the others.
  union {
    unknown @0 :Void;
    delta @1 :Text;
    done :group {
      text @2 :Text;
      calls @3 :List(StepToolCall);
      finishReason @4 :Text;
      model @5 :Text;
      usage @6 :Session.Usage;
      tokens @7 :StepTokenIds;  # absent: the text says them
    }
    failed :group {
      errorClass @8 :Session.ErrorClass;
      code @9 :Text;            # name of an error code
      message @10 :Text;
      retryAfterMs @11 :UInt32;
      contextTokens @12 :UInt32;
      contextLimit @13 :UInt32;
    }
    paused @14 :StepTokenIds;
  }
  steps @15 :UInt32;            # with the last part: of this model that others than the caller have there now, ...
  devices @16 :UInt32;          # ... on so many devices
}
