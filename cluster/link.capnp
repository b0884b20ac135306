@0xe1f27b0c5d86a394;
# The RPC between two nodes, compiled into the cluster's library only. Structs are in schema/cluster.capnp.

using Cxx = import "/capnp/c++.capnp";
using Wire = import "/schema/cluster.capnp";
$Cxx.namespace("mainstay::wire");

interface Lane {
  # One direction of a connection.
  take @0 (frame :Wire.Frame);
  # Its return says that the frame was taken, and gives back that much of the window.
}

interface Gate {
  # What an accepted connection offers before it knows who dialled.
  hello @0 (hello :Wire.Hello, answers :Lane) -> (hello :Wire.Hello, lane :Lane);
  # Once. `lane` takes ping, replication, request, more and cancel; `answers` takes part, more and end. Who is refused
  # gets an exception.
}
