#pragma once
// What the door counts. Families are resolved once, at construction; counting is an atomic add. Labels are the route's
// pattern and the class of the status: never an id, a tenant or a user. Thread-safe as prometheus-cpp is; used on the
// door's thread.

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace mainstay {

class DoorMetrics {
  public:
    /// `routes`: the labels; the index of one is what the functions take.
    DoorMetrics(prometheus::Registry& registry, const std::vector<std::string>& routes);

    void answered(size_t route, uint16_t status, double seconds, size_t bytes_out);
    void received(size_t bytes) { bytes_in_.Increment(static_cast<double>(bytes)); }
    void sent(size_t bytes) { bytes_out_.Increment(static_cast<double>(bytes)); }
    void in_flight(int change) { in_flight_.Increment(change); }
    void connections(size_t count) { connections_.Set(static_cast<double>(count)); }
    void refused_connection() { refused_.Increment(); }

  private:
    std::vector<std::array<prometheus::Counter*, 4>> requests_;  // by route, then 2xx to 5xx
    std::vector<prometheus::Histogram*> seconds_;
    prometheus::Counter& bytes_in_;
    prometheus::Counter& bytes_out_;
    prometheus::Counter& refused_;
    prometheus::Gauge& in_flight_;
    prometheus::Gauge& connections_;
};

}  // namespace mainstay
