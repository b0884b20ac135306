#pragma once
// Which handler answers which method and path, and whether a key is needed. The table is data; a route's pattern is
// also its metric label, so ids never become labels. Door thread only.

#include <array>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "gateway/exchange.h"

namespace mainstay {

/// What the asterisks of a pattern stood for, percent-decoded.
using PathParams = std::array<std::string, 2>;
using Handler = std::function<void(const HttpRequest&, const PathParams&, const Reply&)>;

class Routes {
  public:
    struct Route {
        HttpMethod method;
        std::string pattern;  // "/v1/responses/*"
        Handler handler;
    };

    /// Order matters only for speed: the first match wins and patterns do not overlap.
    void add(HttpMethod method, std::string pattern, Handler handler);

    /// Answers 404 and 405 itself. Gives the index of the label under which the request counts.
    size_t dispatch(const HttpRequest& request, const Reply& reply) const;
    /// The same, and the one place where a foreign exception (bad_alloc, a library) becomes an answer.
    size_t answer(const HttpRequest& request, const Reply& reply) const;

    /// Labels for metrics: the patterns, then "other".
    std::vector<std::string> labels() const;
    size_t other_label() const { return routes_.size(); }

    /// /healthz, /readyz and /metrics: servable without a key.
    static bool is_health(std::string_view path);

  private:
    std::vector<Route> routes_;
};

/// Value of a query parameter, percent-decoded; empty if absent.
std::string query_parameter(std::string_view query, std::string_view name);
/// False: an escape that is none, an encoded NUL, or bytes that are not UTF-8.
bool percent_decode(std::string_view text, std::string& out);

}  // namespace mainstay
