#pragma once
// Memory that a burst of work left behind. Allocators keep freed pages with the thread that allocated them, so a node
// that has fallen quiet goes on holding what its busiest moment took, until each thread gives it back.

namespace mainstay {

/// Gives the pages that nothing on the calling thread's heap uses back to the system. Takes up to some milliseconds:
/// for threads that have just run out of work. Nothing happens where the program runs on an allocator that has no such
/// call.
void give_back_memory();

}  // namespace mainstay
