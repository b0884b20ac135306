@0xb3e6f1a27c4d9058;
# Work that went on at a node when the session's shard left it: the request of a call of kind `leftWork`, and the parts
# of its answer. docs/formats/left_work.md. Fields are only ever added.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("mainstay::wire");

struct LeftName {
  # A model step or tool call by its place in the session's journal.
  isTool @0 :Bool;
  turn @1 :UInt32;
  number @2 :UInt32;            # of the step, or of the call's item
  attempt @3 :UInt32;
}

struct LeftRequest {
  tenant @0 :UInt32;
  family @1 :UInt64;
  high @2 :UInt64;
  low @3 :UInt64;
  epoch @4 :UInt64;             # in which the asker leads the session's shard
  union {
    unknown @5 :Void;           # what an older release reads of a newer one's
    claim @6 :Void;             # tell what there is, and what becomes of it
    cancel @7 :LeftName;        # nobody wants it any more
  }
}

struct LeftPart {
  # Of a claim's answer: `here` for each, with what it has said in deltas; `listed`; then what becomes of them.
  work @0 :LeftName;            # not of `listed`
  union {
    unknown @1 :Void;
    here @2 :Void;
    listed @3 :Void;
    delta @4 :Text;
    model @5 :Data;             # ModelStepPart, not a delta
    tool @6 :Data;              # PeerAnswer with an outcome
  }
}
