@0xb8c41f5e7a90d263;
# What nodes of a cluster say to each other. docs/formats/link.md says how it goes over a connection; the interface that
# carries Hello and Frame is in cluster/link.capnp, because an interface would drag RPC into everything that links this
# folder. Fields are only ever added. No float or double anywhere.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("mainstay::wire");

struct Hello {
  # Who speaks, first thing in both directions of a connection.
  cluster :group { high @0 :UInt64; low @1 :UInt64; }
  node :group { high @2 :UInt64; low @3 :UInt64; }
  incarnation @4 :UInt64;     # of the process
  format @5 :UInt32;          # of frames and messages; must be the same
  version @6 :Text;           # of the release, for the log
}

struct Frame {
  # All that is said after it. At most link_chunk_bytes_max of payload.
  cluster :group { high @0 :UInt64; low @1 :UInt64; }
  incarnation @2 :UInt64;     # of the sender: must be that of its hello
  call @3 :UInt64;            # id given by the caller, from 1; 0: the frame is of no call
  union {
    ping @4 :Void;
    replication @5 :Data;     # the next bytes of a stream of messages, each after its length (u32, little-endian)
    request :group {          # of a call, its first bytes
      kind @6 :UInt8;
      total @7 :UInt32;       # bytes of the whole
      bytes @8 :Data;
    }
    more @9 :Data;            # of the request, or of the part, that is not whole yet
    cancel @10 :Void;         # nobody waits for the answer
    part :group {             # of an answer, its first bytes
      total @11 :UInt32;
      bytes @12 :Data;
    }
    end :group {              # of an answer
      failed @13 :Bool;
      code @14 :Text;         # name of an error code
      message @15 :Text;
      param @16 :Text;
    }
  }
}

enum EntryKind { none @0; record @1; barrier @2; }
enum AppendStatus { ok @0; mismatch @1; fenced @2; }

struct Entry {
  epoch @0 :UInt64;
  index @1 :UInt64;
  chain @2 :UInt64;
  kind @3 :EntryKind;
  length @4 :UInt32;          # of the payload, which follows the head
}

struct ReplicationHead {
  # A ReplicationMessage without its payloads.
  cluster :group { high @0 :UInt64; low @1 :UInt64; }
  fromNode :group { high @2 :UInt64; low @3 :UInt64; }
  fromDisk :group { high @4 :UInt64; low @5 :UInt64; }
  toNode :group { high @6 :UInt64; low @7 :UInt64; }
  toDisk :group { high @8 :UInt64; low @9 :UInt64; }
  fromIncarnation @10 :UInt64;
  shard @11 :UInt16;
  epoch @12 :UInt64;          # of the body
  round @13 :UInt64;
  union {
    append :group {
      previousIndex @14 :UInt64;
      previousEpoch @15 :UInt64;
      previousChain @16 :UInt64;
      commit @17 :UInt64;
      entries @18 :List(Entry);
    }
    appendAnswer :group {
      status @19 :AppendStatus;
      matched @20 :UInt64;
      hint @21 :UInt64;
      promised @22 :UInt64;
      full @23 :Bool;
    }
    snapshotPart :group {
      transfer @24 :UInt64;
      atIndex @25 :UInt64;
      atEpoch @26 :UInt64;
      atChain @27 :UInt64;
      part @28 :UInt32;
      last @29 :Bool;
      length @30 :UInt32;     # of the bytes, which follow the head
    }
    snapshotAnswer :group {
      transfer @31 :UInt64;
      parts @32 :UInt32;
      full @33 :Bool;
    }
  }
}
