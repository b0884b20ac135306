@0xb7e04d9163c2f85a;
# KV blocks that go ahead of a shard to the node that is to lead it (docs/formats/kv_transfer.md): the request of a call
# of kind `kv`, and the one part of its answer. Fields are only ever added.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("mainstay::wire");

struct KvOwner {
  tenant @0 :UInt32;
  family @1 :UInt64;            # all three 0: of an agent's definition of the tenant
  high @2 :UInt64;
  low @3 :UInt64;
}

struct KvName {
  hash0 @0 :UInt64;             # bytes 0 to 7 of the block's name, little-endian
  hash1 @1 :UInt64;             # bytes 8 to 15
  tokens @2 :UInt32;
  owner @3 :KvOwner;
}

struct KvSent {
  name @0 :KvName;
  checksum @1 :UInt32;          # CRC-32C of name, tokens and bytes
  bytes @2 :Data;               # docs/formats/kv_block.md
}

struct KvRequest {
  model @0 :Text;               # its name; of `forget`: empty, as the next three
  modelHash @1 :Text;           # whose bits they are
  kvFormat @2 :Text;
  blockTokens @3 :UInt32;
  union {
    unknown @4 :Void;           # what an older release reads of a newer one's
    wanted @5 :List(KvName);    # which of these would the receiver take?
    blocks @6 :List(KvSent);
    forget @7 :List(KvOwner);   # sessions that were deleted
  }
}

struct KvAnswer {
  outcomes @0 :Data;            # of each block, in the order asked: KvOutcome; of `forget`: none
}
