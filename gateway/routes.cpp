#include "gateway/routes.h"

#include "gateway/error_table.h"
#include "gateway/request_json.h"

namespace mainstay {
namespace {

int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/// The next segment of a path that begins with a slash.
std::string_view take_segment(std::string_view& path) {
    path.remove_prefix(1);
    const auto end = std::min(path.find('/'), path.size());
    const auto segment = path.substr(0, end);
    path.remove_prefix(end);
    return segment;
}

bool matches(std::string_view pattern, std::string_view path, std::array<std::string_view, 2>& params) {
    size_t count = 0;
    while (!pattern.empty() && !path.empty()) {
        const auto wanted = take_segment(pattern), given = take_segment(path);
        if (wanted != "*") {
            if (wanted != given) return false;
        } else {
            if (given.empty() || count == params.size()) return false;
            params[count++] = given;
        }
    }
    return pattern.empty() && path.empty();
}

std::string_view method_name(HttpMethod method) {
    switch (method) {
        case HttpMethod::get: return "GET, HEAD";
        case HttpMethod::post: return "POST";
        case HttpMethod::del: return "DELETE";
        case HttpMethod::other: break;
    }
    return "";
}

}  // namespace

void Routes::add(HttpMethod method, std::string pattern, Handler handler) {
    routes_.push_back({method, std::move(pattern), std::move(handler)});
}

size_t Routes::dispatch(const HttpRequest& request, const Reply& reply) const {
    std::string allow;
    for (size_t i = 0; i < routes_.size(); ++i) {
        const auto& route = routes_[i];
        std::array<std::string_view, 2> raw;
        if (!matches(route.pattern, request.path, raw)) continue;
        if (route.method != request.method) {
            if (!allow.empty()) allow += ", ";
            allow += method_name(route.method);
            continue;
        }
        PathParams params;
        for (size_t at = 0; at < raw.size(); ++at) {
            if (percent_decode(raw[at], params[at])) continue;
            reply.send(error_answer(ErrorCode::invalid_request, "The path has an invalid escape."));
            return i;
        }
        route.handler(request, params, reply);
        return i;
    }
    if (allow.empty()) {
        reply.send(error_answer(ErrorCode::not_found, "There is nothing at this address; see docs/API.md."));
    } else {
        auto answer = error_answer(ErrorCode::method_not_allowed, "This address allows " + allow + ".");
        answer.headers += "Allow: " + allow + "\r\n";
        reply.send(std::move(answer));
    }
    return other_label();
}

size_t Routes::answer(const HttpRequest& request, const Reply& reply) const {
    try {
        return dispatch(request, reply);
    } catch (const std::exception&) {
        reply.send(error_answer(ErrorCode::internal, "The request could not be handled."));
        return other_label();
    }
}

std::vector<std::string> Routes::labels() const {
    std::vector<std::string> out;
    for (const auto& route : routes_) out.push_back(route.pattern);
    out.push_back("other");
    return out;
}

bool Routes::is_health(std::string_view path) { return path == "/healthz" || path == "/readyz" || path == "/metrics"; }

bool percent_decode(std::string_view text, std::string& out) {
    out.clear();
    for (size_t i = 0; i < text.size(); ++i) {
        if (text[i] != '%') {
            out.push_back(text[i]);
            continue;
        }
        if (i + 2 >= text.size()) return false;
        const int high = hex_digit(text[i + 1]), low = hex_digit(text[i + 2]);
        if (high < 0 || low < 0 || (high == 0 && low == 0)) return false;
        out.push_back(static_cast<char>(high * 16 + low));
        i += 2;
    }
    return is_valid_utf8(out);
}

std::string query_parameter(std::string_view query, std::string_view name) {
    while (!query.empty()) {
        const auto end = std::min(query.find('&'), query.size());
        const auto pair = query.substr(0, end);
        query.remove_prefix(std::min(end + 1, query.size()));
        const auto equals = std::min(pair.find('='), pair.size());
        if (pair.substr(0, equals) != name || equals == pair.size()) continue;
        std::string value;
        return percent_decode(pair.substr(equals + 1), value) ? value : std::string();
    }
    return {};
}

}  // namespace mainstay
