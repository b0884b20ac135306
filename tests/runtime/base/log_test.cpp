#include "runtime/base/log.h"

#include <doctest/doctest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <boost/json/parse.hpp>
#include <sstream>

using namespace mainstay;

namespace {

std::string logged(bool json, const std::string& message) {
    std::ostringstream out;
    spdlog::logger logger("test", std::make_shared<spdlog::sinks::ostream_sink_mt>(out));
    logger.set_formatter(make_log_formatter(json));
    logger.warn("{}", message);
    return out.str();
}

}  // namespace

TEST_CASE("log: an entry is one JSON object whatever is in the message") {
    const std::string nasty =
        std::string("a \"quote\" \\ back\nline\r\t\x01\x7f ") + '\0' + "\xff\xc3 \xed\xa0\x80 \xe2\x82\xac";
    const std::string line = logged(true, nasty);
    CHECK(std::count(line.begin(), line.end(), '\n') == 1);
    CHECK(line.back() == '\n');
    const auto entry = boost::json::parse(line).as_object();
    CHECK(entry.at("level").as_string() == "warning");
    CHECK(entry.at("message").as_string() ==
          std::string("a \"quote\" \\ back\nline\r\t\x01\x7f ") + '\0' +
              "\xef\xbf\xbd\xef\xbf\xbd \xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd \xe2\x82\xac");
    const std::string time(entry.at("time").as_string());
    CHECK(time.size() == 24);
    CHECK(time.back() == 'Z');
}

TEST_CASE("log: an entry is one line of text, so that a message cannot forge another") {
    const std::string line = logged(false, "x\n2026-01-01T00:00:00.000Z error forged");
    CHECK(std::count(line.begin(), line.end(), '\n') == 1);
    CHECK(line.find(" warning x\\n2026") != std::string::npos);
}

TEST_CASE("log: what looks like a key is masked") {
    for (const bool json : {false, true}) {
        const std::string line = logged(json, "sent Authorization: Bearer abc.DEF-123~456 to x");
        CHECK(line.find("abc.DEF") == std::string::npos);
        CHECK(line.find("Bearer ***") != std::string::npos);
    }
    CHECK(mask_secrets("key msk_0123456789abcdef, next") == "key msk_***, next");
    CHECK(mask_secrets("sk-abcdefgh") == "sk-***");
    CHECK(mask_secrets("\"Basic dXNlcjpwYXNz\"") == "\"Basic ***\"");
    CHECK(mask_secrets("a basic setup, the bearer of news, task-oriented-work, risk-averse") ==
          "a basic setup, the bearer of news, task-oriented-work, risk-averse");
    CHECK(mask_secrets("").empty());
}

TEST_CASE("log: the level that was set is the least that is written") {
    init_log("error", false);
    CHECK_FALSE(spdlog::should_log(spdlog::level::warn));
    CHECK(spdlog::should_log(spdlog::level::err));
    init_log("off", true);
    CHECK_FALSE(spdlog::should_log(spdlog::level::critical));
    init_log("no such level", false);
    CHECK(spdlog::should_log(spdlog::level::info));
    CHECK_FALSE(spdlog::should_log(spdlog::level::debug));
}
