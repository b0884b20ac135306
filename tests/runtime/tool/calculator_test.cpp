#include "runtime/tool/calculator.h"

#include <doctest/doctest.h>

#include <string>

#include "runtime/base/limits.h"

using namespace mainstay;

namespace {

std::string value(std::string_view expression) {
    const auto result = calculate(expression);
    return result ? *result : "! " + result.error().message;
}

}  // namespace

TEST_CASE("calculator: sums as people write them") {
    struct Row {
        const char *expression, *result;
    };
    const Row rows[] = {
        {"17+25", "42"},
        {" 17 + 25 ", "42"},
        {"5-17", "-12"},
        {"12*2.50", "30"},
        {"2+3*4", "14"},
        {"(2+3)*4", "20"},
        {"20-3-4", "13"},
        {"100/5/2", "10"},
        {"-5+3", "-2"},
        {"2*-3", "-6"},
        {"--4", "4"},
        {"-(2+3)", "-5"},
        {"((((1))))", "1"},
        {"0.1+0.2", "0.3"},
        {".5*4", "2"},
        {"1/3", "0.333333"},
        {"2/3", "0.666667"},
        {"-2/3", "-0.666667"},
        {"1/3*3", "1"},
        {"0.0000005", "0.000001"},
        {"-0.0000004", "0"},
        {"1/0.25", "4"},
        {"9/-3", "-3"},
        {"0.9999999", "1"},
        {"99999*99999", "9999800001"},
        {"123456789012345678*100000000000000000", "12345678901234567800000000000000000"},
        {"007", "7"},
        {"0", "0"},
    };
    for (const auto& row : rows) {
        CAPTURE(row.expression);
        CHECK(value(row.expression) == row.result);
    }
}

TEST_CASE("calculator: what is no calculation is said, never guessed") {
    for (const char* expression : {"1/0", "1/(2-2)", "5/0.0"}) {
        CAPTURE(expression);
        CHECK(value(expression) == "! division by zero");
    }
    for (const char* expression :
         {"", " ", "two", "1+", "*2", "1 2", "1..2", "1.", ".", "2^3", "1,5", "1e5", "()", "1)", "\xc3\x97", "a+b"}) {
        CAPTURE(expression);
        CHECK(value(expression) == "! this is not a calculation with numbers and + - * / ( )");
    }
    CHECK(value("(1+2") == "! a parenthesis is not closed");
    CHECK(value("99999999999999999999*99999999999999999999") == "! the numbers are too large");
    CHECK(value(std::string(60, '9')) == "! the numbers are too large");
    std::string sums = "1/1000003";
    for (const char* more : {"+1/1000033", "+1/1000037", "+1/1000039", "+1/1000081", "+1/1000099", "+1/1000117"})
        sums += more;
    CHECK(value(sums) == "! the numbers are too large");
    CHECK(value(std::string(limits::calc_depth_max, '(') + "1" + std::string(limits::calc_depth_max, ')')) == "1");
    CHECK(value(std::string(limits::calc_depth_max + 1, '(') + "1").find("calc_depth_max") != std::string::npos);
    CHECK(value(std::string(limits::calc_expression_bytes_max + 1, '1')).find("calc_expression_bytes_max") !=
          std::string::npos);
}
