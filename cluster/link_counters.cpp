#include "cluster/link_counters.h"

namespace mainstay {

LinkStats LinkCounters::read() const {
    LinkStats out;
    out.peers_connected = peers_connected;
    out.connections_accepted = connections_accepted;
    out.handshakes = handshakes;
    out.calls_under_way = calls_under_way;
    out.calls_served = calls_served;
    out.queue_bytes = queue_bytes;
    out.window_bytes = window_bytes;
    out.assembly_bytes = assembly_bytes;
    out.messages_sent = messages_sent;
    out.messages_received = messages_received;
    out.messages_dropped_no_link = messages_dropped_no_link;
    out.messages_dropped_queue_full = messages_dropped_queue_full;
    out.messages_dropped_too_large = messages_dropped_too_large;
    out.messages_dropped_link_lost = messages_dropped_link_lost;
    out.frames_sent = frames_sent;
    out.frames_received = frames_received;
    out.bytes_sent = bytes_sent;
    out.bytes_received = bytes_received;
    out.dials = dials;
    out.dials_failed = dials_failed;
    out.links_lost = links_lost;
    out.silences = silences;
    out.refused_connections = refused_connections;
    out.refused_tls = refused_tls;
    out.refused_handshake = refused_handshake;
    out.refused_identity = refused_identity;
    out.refused_cluster = refused_cluster;
    out.refused_incarnation = refused_incarnation;
    out.refused_format = refused_format;
    out.refused_frame = refused_frame;
    out.refused_message = refused_message;
    out.refused_call = refused_call;
    return out;
}

}  // namespace mainstay
