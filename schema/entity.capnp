@0xb8d3c4e6f1a20597;
# State that belongs to no session, journalled like one (agents, models, keys).
using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("mainstay::wire");

struct Entity {
  kind @0 :Text;       # "agent", "model"
  name @1 :Text;
  version @2 :UInt64;  # digest of the canonical body
  body @3 :Text;       # canonical JSON
  at @4 :UInt64;       # milliseconds since 1970
  principal @5 :Text;
  removed @6 :Bool;
}
