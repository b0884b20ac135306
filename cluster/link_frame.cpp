#include "cluster/link_frame.h"

#include <kj/exception.h>

#include <algorithm>

#include "cluster/wire_uuid.h"
#include "runtime/base/limits.h"

namespace mainstay {

namespace {

Error refused(const char* why) { return {ErrorCode::peer_refused, std::string("a frame: ") + why, {}}; }

std::string_view view(capnp::Data::Reader bytes) {
    return {reinterpret_cast<const char*>(bytes.begin()), bytes.size()};
}

std::string cut(capnp::Text::Reader text) { return {text.begin(), std::min(text.size(), link_error_text_max)}; }
std::string cut(const std::string& text) { return text.substr(0, link_error_text_max); }

void decode_end(wire::Frame::End::Reader from, LinkFrame& out) {
    out.failed = from.getFailed();
    if (!out.failed) return;
    const auto name = from.getCode();
    const ErrorInfo* known = find_error({name.begin(), name.size()});
    // A newer release may know codes that this one does not.
    out.failure = {known ? known->code : ErrorCode::internal, cut(from.getMessage()), cut(from.getParam())};
}

Result<LinkFrame> decode(wire::Frame::Reader from, LinkEnd end) {
    LinkFrame out;
    out.cluster = read_uuid(from.getCluster());
    out.incarnation = from.getIncarnation();
    out.call = from.getCall();
    switch (from.which()) {
        case wire::Frame::PING: out.type = FrameType::ping; break;
        case wire::Frame::REPLICATION:
            out.type = FrameType::replication;
            out.bytes = view(from.getReplication());
            break;
        case wire::Frame::REQUEST:
            out.type = FrameType::request;
            out.kind = from.getRequest().getKind();
            out.total = from.getRequest().getTotal();
            out.bytes = view(from.getRequest().getBytes());
            break;
        case wire::Frame::MORE:
            out.type = FrameType::more;
            out.bytes = view(from.getMore());
            break;
        case wire::Frame::CANCEL: out.type = FrameType::cancel; break;
        case wire::Frame::PART:
            out.type = FrameType::part;
            out.total = from.getPart().getTotal();
            out.bytes = view(from.getPart().getBytes());
            break;
        case wire::Frame::END:
            out.type = FrameType::end;
            decode_end(from.getEnd(), out);
            break;
        default: return refused("unknown type");
    }
    if (!takes(end, out.type)) return refused("of the other direction");
    const bool of_a_call = out.type != FrameType::ping && out.type != FrameType::replication;
    if (of_a_call != (out.call != 0)) return refused("a call that must not, or must, be named");
    if (out.bytes.size() > limits::link_chunk_bytes_max) return refused("more than link_chunk_bytes_max");
    if (out.total > limits::link_message_bytes_max) return refused("of a message beyond link_message_bytes_max");
    const bool begins = out.type == FrameType::request || out.type == FrameType::part;
    if (begins && out.bytes.size() > out.total) return refused("more bytes than the whole has");
    // Pieces without bytes would never end; only a whole message may be empty.
    const bool may_be_empty = !begins || out.total == 0;
    if (begins && out.bytes.empty() && !may_be_empty) return refused("the first piece is empty");
    if (out.type == FrameType::more && out.bytes.empty()) return refused("a piece is empty");
    return out;
}

}  // namespace

bool takes(LinkEnd end, FrameType type) {
    switch (type) {
        case FrameType::ping:
        case FrameType::replication:
        case FrameType::request:
        case FrameType::cancel: return end == LinkEnd::accepted;
        case FrameType::more: return true;
        case FrameType::part:
        case FrameType::end: return end == LinkEnd::dialled;
    }
    return false;
}

Result<LinkFrame> decode_frame(wire::Frame::Reader from, LinkEnd end) {
    try {
        return decode(from, end);
    } catch (const kj::Exception&) {
        return refused("damaged");
    }
}

char* encode_frame(wire::Frame::Builder to, const LinkFrame& frame, size_t size) {
    write_uuid(to.getCluster(), frame.cluster);
    to.setIncarnation(frame.incarnation);
    to.setCall(frame.call);
    const auto room = [](capnp::Data::Builder bytes) { return reinterpret_cast<char*>(bytes.begin()); };
    switch (frame.type) {
        case FrameType::ping: to.setPing(); return nullptr;
        case FrameType::replication: return room(to.initReplication(unsigned(size)));
        case FrameType::request: {
            auto request = to.initRequest();
            request.setKind(frame.kind);
            request.setTotal(frame.total);
            return room(request.initBytes(unsigned(size)));
        }
        case FrameType::more: return room(to.initMore(unsigned(size)));
        case FrameType::cancel: to.setCancel(); return nullptr;
        case FrameType::part: {
            auto part = to.initPart();
            part.setTotal(frame.total);
            return room(part.initBytes(unsigned(size)));
        }
        case FrameType::end: {
            auto end = to.initEnd();
            end.setFailed(frame.failed);
            if (!frame.failed) return nullptr;
            end.setCode(std::string(error_name(frame.failure.code)));
            end.setMessage(cut(frame.failure.message));
            end.setParam(cut(frame.failure.param));
            return nullptr;
        }
    }
    return nullptr;
}

LinkHello decode_hello(wire::Hello::Reader from) {
    return {read_uuid(from.getCluster()), read_uuid(from.getNode()), from.getIncarnation(), from.getFormat(),
            cut(from.getVersion()).substr(0, 64)};
}

void encode_hello(wire::Hello::Builder to, const LinkHello& hello) {
    write_uuid(to.getCluster(), hello.cluster);
    write_uuid(to.getNode(), hello.node);
    to.setIncarnation(hello.incarnation);
    to.setFormat(hello.format);
    to.setVersion(cut(hello.version));
}

}  // namespace mainstay
