#pragma once
// What a link counts. Any thread; each number by itself.

#include <atomic>
#include <cstdint>

#include "cluster/link.h"

namespace mainstay {

/// The numbers of LinkStats, under the same names.
struct LinkCounters {
    using Count = std::atomic<uint64_t>;
    Count peers_connected{0}, connections_accepted{0}, handshakes{0}, calls_under_way{0}, calls_served{0};
    Count queue_bytes{0}, window_bytes{0}, assembly_bytes{0};
    Count messages_sent{0}, messages_received{0}, messages_dropped_no_link{0}, messages_dropped_queue_full{0};
    Count messages_dropped_too_large{0}, messages_dropped_link_lost{0};
    Count frames_sent{0}, frames_received{0}, bytes_sent{0}, bytes_received{0};
    Count dials{0}, dials_failed{0}, links_lost{0}, silences{0};
    Count refused_connections{0}, refused_tls{0}, refused_handshake{0}, refused_identity{0}, refused_cluster{0};
    Count refused_incarnation{0}, refused_format{0}, refused_frame{0}, refused_message{0}, refused_call{0};

    LinkStats read() const;
};

}  // namespace mainstay
