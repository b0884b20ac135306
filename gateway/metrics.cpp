#include "gateway/metrics.h"

#include <algorithm>

namespace mainstay {
namespace {

using prometheus::BuildCounter;
using prometheus::BuildGauge;
using prometheus::BuildHistogram;

const prometheus::Histogram::BucketBoundaries buckets = {0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025,
                                                         0.05,   0.1,     0.25,   0.5,   1,      2.5,   10,   60};

}  // namespace

DoorMetrics::DoorMetrics(prometheus::Registry& registry, const std::vector<std::string>& routes)
    : bytes_in_(BuildCounter()
                    .Name("mainstay_http_received_bytes_total")
                    .Help("Bytes read from clients.")
                    .Register(registry)
                    .Add({})),
      bytes_out_(BuildCounter()
                     .Name("mainstay_http_sent_bytes_total")
                     .Help("Bytes written to clients.")
                     .Register(registry)
                     .Add({})),
      refused_(BuildCounter()
                   .Name("mainstay_http_refused_connections_total")
                   .Help("Connections refused because the bound was reached.")
                   .Register(registry)
                   .Add({})),
      in_flight_(BuildGauge()
                     .Name("mainstay_http_requests_in_flight")
                     .Help("Requests that were read and not yet answered.")
                     .Register(registry)
                     .Add({})),
      connections_(
          BuildGauge().Name("mainstay_http_connections").Help("Open client connections.").Register(registry).Add({})) {
    auto& requests = BuildCounter()
                         .Name("mainstay_http_requests_total")
                         .Help("Requests answered, by route and class of the status.")
                         .Register(registry);
    auto& seconds = BuildHistogram()
                        .Name("mainstay_http_request_duration_seconds")
                        .Help("Time from the end of a request's header to the last byte of its answer.")
                        .Register(registry);
    // The same pattern under two methods shares its series: Add() returns the one that exists.
    for (const auto& route : routes) {
        requests_.push_back({&requests.Add({{"route", route}, {"status", "2xx"}}),
                             &requests.Add({{"route", route}, {"status", "3xx"}}),
                             &requests.Add({{"route", route}, {"status", "4xx"}}),
                             &requests.Add({{"route", route}, {"status", "5xx"}})});
        seconds_.push_back(&seconds.Add({{"route", route}}, buckets));
    }
}

void DoorMetrics::answered(size_t route, uint16_t status, double seconds, size_t bytes_out) {
    requests_[route][std::clamp(status / 100 - 2, 0, 3)]->Increment();
    seconds_[route]->Observe(seconds);
    sent(bytes_out);
}

}  // namespace mainstay
