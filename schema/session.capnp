@0xd6a1f0b2c39e4587;
# What a session leaves on disk. An EventBatch is the body of one journal record (packed encoding); a Head is the
# snapshot of a session at a turn boundary. Fields are only ever added. docs/formats/ says how they are framed.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("mainstay::wire");

enum Role { user @0; assistant @1; system @2; developer @3; }

enum ItemKind {
  message @0;             # text of a role
  functionCall @1;        # a call that the client runs
  functionCallOutput @2;  # what the client answered
  toolCall @3;            # a call that Mainstay runs (MCP or builtin); carries its output when settled
  compaction @4;          # a summary that stands for earlier items in prompts
  approvalRequest @5;
  approvalResponse @6;
}

enum ItemStatus { inProgress @0; completed @1; incomplete @2; failed @3; unknown @4; }

struct Item {
  # One immutable entry of a session's history. Its id follows from session, turn and position, so none is stored.
  kind @0 :ItemKind;
  role @1 :Role;
  status @2 :ItemStatus;
  text @3 :Text;                # message text; output of a call
  moreParts @4 :List(Text);     # further text parts of a message that came in several
  callId @5 :Text;
  name @6 :Text;                # tool or function
  serverLabel @7 :Text;
  arguments @8 :Text;           # JSON text
  error @9 :Text;
  step @10 :UInt16;             # model step of the turn that made it
}

struct Usage {
  inputTokens @0 :UInt32;
  cachedTokens @1 :UInt32;
  outputTokens @2 :UInt32;
  reasoningTokens @3 :UInt32;
  deviceMicros @4 :UInt64;      # device time; simulated where the device says so
  microJoules @5 :UInt64;
  simulated @6 :Bool;
}

enum EffectClass { read @0; idempotent @1; once @2; }

enum ErrorClass { transient @0; rateLimited @1; overloaded @2; invalid @3; auth @4; contextOverflow @5; contentFilter @6; protocol @7; timeout @8; lost @9; }

struct TurnLimits {
  steps @0 :UInt32;             # model steps
  tokens @1 :UInt32;            # output tokens over all steps; 0: no limit
  durationMs @2 :UInt64;        # from acceptance, waits for people not counted
}

struct Event {
  union {
    created :group {
      tenant @0 :UInt32;
      principal @1 :Text;
      parentFamily @2 :UInt64;       # zero: a root
      parentSession @3 :Data;        # 16 bytes
      parentTurn @4 :UInt32;         # history up to and with this turn is shared
      metadata @5 :Text;             # JSON object
      ephemeral @6 :Bool;            # deleted when settled (store: false)
      conversation @7 :Bool;         # owned by a conversation (a response chain must fork it)
    }
    inputAccepted :group {
      items @8 :List(Item);
      agent @9 :Text;
      agentVersion @10 :UInt64;
      principal2 @11 :Text;
      keyHash @12 :Data;             # idempotency key, 16-byte digest; empty: none
      requestDigest @13 :UInt64;     # of the request body: a key used twice must mean the same request
      limits @14 :TurnLimits;
      options @15 :Text;             # JSON of the request fields that the answer echoes and the model step uses
    }
    modelStepSettled :group {
      step @16 :UInt32;
      items @17 :List(Item);         # what the step put into the history
      usage @18 :Usage;
      model @19 :Text;
      finishReason @20 :Text;
      tokenIds @21 :Data;            # sampled ids, little-endian u32; empty: the text says them, or nobody knows them
      tokenizerHash @22 :Data;       # 16 bytes; of another length it names no tokenizer, and the text counts
      templateVersion @23 :UInt32;
    }
    toolIntent :group {
      call @24 :UInt32;              # position of the call's item within the turn
      effect @25 :EffectClass;
      timeoutMs @26 :UInt64;
    }
    toolReceipt :group {
      call @27 :UInt32;
      status @28 :ItemStatus;        # completed, failed or unknown
      output @29 :Text;
      error @30 :Text;
      durationMicros @31 :UInt64;
    }
    stepFailed :group {
      step @32 :UInt32;              # model step, or with `isTool` the call position
      isTool @33 :Bool;
      class @34 :ErrorClass;
      code @35 :Text;                # stable code of the closed list
      message @36 :Text;
      partialText @37 :Text;         # what a stream had shown when the step failed: kept as an `incomplete` item
    }
    retryScheduled :group { step @38 :UInt32; isTool @39 :Bool; at @40 :UInt64; attempt @41 :UInt32; reason @42 :Text; }
    turnSettled :group {
      status @43 :TurnStatus;
      code @44 :Text;                # error code or reason when not completed
      message @45 :Text;
    }
    cancelRequested :group { principal3 @46 :Text; reason2 @47 :Text; }
    waitOpened :group { wait @48 :UInt32; kind @49 :WaitKind; due @50 :UInt64; call @51 :UInt32; subject @52 :Text; }
    waitResolved :group { wait @53 :UInt32; outcome @54 :WaitOutcome; payload @55 :Text; principal4 @56 :Text; }
    decision :group { code2 @57 :Text; subject2 @58 :Text; reason3 @59 :Text; }   # why something was refused, retried or moved
    memorySet :group { key @60 :Text; value @61 :Text; removed @62 :Bool; }
    unknownResolved :group { call @63 :UInt32; how @64 :Resolution; output @65 :Text; principal5 @66 :Text; }
    itemsAdded :group { items @67 :List(Item); principal6 @68 :Text; }            # POST /v1/conversations/{id}/items
    metadataSet @69 :Text;
    deleted @70 :Text;                                                            # by whom
    streamReserved @71 :UInt64;                                                   # stream sequence numbers below this may have been sent
    compacted :group { upToTurn @72 :UInt32; summary @73 :Text; }
    forked :group { childFamily @74 :UInt64; childSession @75 :Data; atTurn @76 :UInt32; }
    stepProgress :group {
      step3 @77 :UInt32;             # model step of the turn, that is due
      tokenIds3 @78 :Data;           # what its attempt had sampled when it was paused, from its beginning: as in modelStepSettled
      tokenizerHash3 @79 :Data;
      templateVersion3 @80 :UInt32;
    }
  }
}

enum TurnStatus { queued @0; inProgress @1; completed @2; failed @3; incomplete @4; cancelled @5; }
enum WaitKind { timer @0; approval @1; signal @2; child @3; }
enum WaitOutcome { fired @0; approved @1; denied @2; signalled @3; expired @4; cancelled @5; }
enum Resolution { done @0; failed @1; retry @2; }

struct EventBatch {
  # The events of one decision, which are durable together or not at all.
  at @0 :UInt64;                # milliseconds since 1970, the time of the command: the only clock that a session knows
  turn @1 :UInt32;              # the turn that they belong to; 0: the session itself
  events @2 :List(Event);
}

struct Head {
  # A session at a turn boundary, plus the raw batches of turns that are not settled: replaying them gives the rest.
  format @0 :UInt32 = 1;
  tenant @1 :UInt32;
  sequence @2 :UInt64;          # of the last event that this head contains, open batches included
  createdAt @3 :UInt64;
  updatedAt @4 :UInt64;
  principal @5 :Text;
  metadata @6 :Text;
  parentFamily @7 :UInt64;
  parentSession @8 :Data;
  parentTurn @9 :UInt32;
  ephemeral @10 :Bool;
  conversation @11 :Bool;
  turnsSettled @12 :UInt32;
  itemsSettled @13 :UInt64;
  usage @14 :Usage;             # sums over settled turns
  memory @15 :List(MemoryEntry);
  openBatches @16 :List(OpenBatch);
  compactedTo @17 :UInt32;
  summary @18 :Text;
  agent @19 :Text;              # of the last turn
  streamReserved @20 :UInt64;
  children @21 :UInt32;         # forks that share this history
  deleted @22 :Bool;
  compactedTurns @23 :UInt32;
  turnBase @24 :UInt32;         # for a fork: the parent's turn count at the fork
  wakeAt @25 :UInt64;           # under which the session stands in the due table; 0: it does not
  keepUntil @26 :UInt64;        # ephemeral, with an idempotency key: its answer is kept until the key expires; 0: it is not
  noted @27 :UInt32;            # kinds of refusals recorded since the last turn ended (one bit each)
}

struct MemoryEntry { key @0 :Text; value @1 :Text; }
struct OpenBatch { firstSequence @0 :UInt64; bytes @1 :Data; }   # bytes: a packed EventBatch, as in the journal
