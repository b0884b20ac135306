@0xd27f5c1a96e3b804;
# A request that came to another node than its shard's, and its answer in parts. docs/formats/hop.md says how they go.
# Fields are only ever added.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("mainstay::wire");

struct HopRequest {
  enum Method { get @0; post @1; delete @2; }
  method @0 :Method;
  head @1 :Bool;            # HEAD: get, answered without its body
  path @2 :Text;            # as the client wrote it, escapes included
  query @3 :Text;           # behind the question mark
  contentType @4 :Text;
  idempotencyKey @5 :Text;  # the client's, or the first door's own
  timeoutMs @6 :Text;       # X-Mainstay-Timeout-Ms
  body @7 :Data;
  tenant @8 :UInt32;        # who was authenticated at the first door
  principal @9 :Text;
  admin @10 :Bool;
}

struct HopPart {
  union {
    head :group {           # the first part, and no other
      status @0 :UInt16;
      contentType @1 :Text;
      headers @2 :Text;     # further lines, each with its CR LF
      stream @3 :Bool;      # the body is text/event-stream and comes as it is made
      error @4 :Text;       # name of an error code, where the answer is one
      shard @5 :Int32 = -1; # with misdirected and shard_unavailable: which one
    }
    body @6 :Data;          # its next bytes
  }
}
