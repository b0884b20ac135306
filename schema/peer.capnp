@0x9d1c7be2043fa8e6;
# What nodes of a cluster ask of each other beside requests of clients (hop.capnp) and replication (cluster.capnp): the
# request of a call of kind `shard`, and the one part of its answer. docs/formats/peer.md. Fields are only ever added.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("mainstay::wire");

struct PeerRequest {
  union {
    unknown @0 :Void;           # what an older release reads of a newer one's
    memory :group {             # a call on a user's memory whose shard the receiver leads
      tenant @1 :UInt32;
      principal @2 :Text;       # whose memory
      memory @3 :Text;          # its name
      bytesMax @4 :UInt64;
      tool @5 :Text;
      arguments @6 :Text;       # JSON
      idempotencyKey @7 :Text;  # stable: repeated, the call changes nothing twice
    }
    entities @8 :List(Data);    # agents and models, each a packed Entity, for the receiver's catalogue
  }
}

struct PeerAnswer {
  union {
    done @0 :Void;
    outcome :group {            # of a call
      kind @1 :UInt8;           # 0 result, 1 failed: it surely did not run, 2 lost
      isError @2 :Bool;
      output @3 :Text;
      errorClass @4 :UInt8;
      code @5 :Text;            # name of an error code
      message @6 :Text;
      durationMicros @7 :UInt64;
    }
  }
}
