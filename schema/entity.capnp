@0xb8d3c4e6f1a20597;
# State that belongs to no session, journalled like one (agents, models, memories of users).
using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("mainstay::wire");

struct Entity {
  kind @0 :Text;       # "agent", "model", "memory"
  name @1 :Text;
  version @2 :UInt64;  # digest of the canonical body; of a memory: its changes so far
  body @3 :Text;       # canonical JSON; of a memory as in docs/formats/state.md, empty where all of it was removed
  at @4 :UInt64;       # milliseconds since 1970
  principal @5 :Text;  # who applied it; of a memory: whose it is
  removed @6 :Bool;    # of a memory: this change removed text, which is erased from the files
}
