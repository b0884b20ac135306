#include "runtime/tool/calculator.h"

#include <algorithm>
#include <optional>

#include "runtime/base/limits.h"

namespace mainstay {

namespace {

__extension__ typedef __int128 Wide;

constexpr Wide decimals = 1'000'000;
constexpr Wide smallest = Wide{1} << 126 << 1;  // the one number that has no negative

Wide common_divisor(Wide a, Wide b) {
    if (a < 0) a = -a;
    while (b != 0) {
        const Wide rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/// In lowest terms, denominator above zero.
struct Fraction {
    Wide over = 0, under = 1;
};

class Calculation {
  public:
    explicit Calculation(std::string_view text) : text_(text) {}

    Result<std::string> run() {
        const Fraction value = sum(0);
        blank();
        if (at_ < text_.size()) fail("this is not a calculation with numbers and + - * / ( )");
        const std::string text = problem_ ? std::string() : written(value);
        if (problem_) return Error{ErrorCode::invalid_request, std::string(*problem_), "expression"};
        return text;
    }

  private:
    void fail(std::string_view what) {
        if (!problem_) problem_ = what;
        at_ = text_.size();
    }

    void blank() {
        while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t')) ++at_;
    }

    bool take(char c) {
        blank();
        if (at_ >= text_.size() || text_[at_] != c) return false;
        ++at_;
        return true;
    }

    Wide times(Wide a, Wide b) {
        Wide result = 0;
        if (__builtin_mul_overflow(a, b, &result) || result == smallest) fail("the numbers are too large");
        return problem_ ? 0 : result;
    }

    Wide plus(Wide a, Wide b) {
        Wide result = 0;
        if (__builtin_add_overflow(a, b, &result) || result == smallest) fail("the numbers are too large");
        return problem_ ? 0 : result;
    }

    Fraction made(Wide over, Wide under) {
        if (problem_) return {};
        const Wide divisor = common_divisor(over, under);
        return {over / divisor, under / divisor};
    }

    Fraction product(Fraction a, Fraction b) {
        // Divided crosswise first, so that what fits in the end fits on the way.
        const Wide x = common_divisor(a.over, b.under), y = common_divisor(b.over, a.under);
        return made(times(a.over / x, b.over / y), times(a.under / y, b.under / x));
    }

    Fraction total(Fraction a, Fraction b) {
        const Wide divisor = common_divisor(a.under, b.under);
        return made(plus(times(a.over, b.under / divisor), times(b.over, a.under / divisor)),
                    times(a.under, b.under / divisor));
    }

    Fraction sum(size_t depth) {
        Fraction value = term(depth);
        while (!problem_) {
            if (take('+')) {
                value = total(value, term(depth));
            } else if (take('-')) {
                Fraction next = term(depth);
                next.over = -next.over;
                value = total(value, next);
            } else {
                break;
            }
        }
        return value;
    }

    Fraction term(size_t depth) {
        Fraction value = factor(depth);
        while (!problem_) {
            if (take('*')) {
                value = product(value, factor(depth));
            } else if (take('/')) {
                Fraction next = factor(depth);
                if (!problem_ && next.over == 0) fail("division by zero");
                if (problem_) break;
                if (next.over < 0) next = {-next.over, -next.under};
                value = product(value, {next.under, next.over});
            } else {
                break;
            }
        }
        return value;
    }

    Fraction factor(size_t depth) {
        bool negative = false;
        for (bool more = true; more;) {
            more = take('-');
            if (more) negative = !negative;
            if (!more && take('+')) more = true;
        }
        Fraction value;
        if (take('(')) {
            if (depth >= limits::calc_depth_max) {
                fail("too many parentheses within each other: calc_depth_max");
                return {};
            }
            value = sum(depth + 1);
            if (!problem_ && !take(')')) fail("a parenthesis is not closed");
        } else {
            value = number();
        }
        if (negative) value.over = -value.over;
        return problem_ ? Fraction{} : value;
    }

    Fraction number() {
        blank();
        Wide over = 0, under = 1;
        size_t digits = 0;
        bool point = false;
        for (; at_ < text_.size() && !problem_; ++at_) {
            const char c = text_[at_];
            if (c == '.' && !point) {
                point = true;
                continue;
            }
            if (c < '0' || c > '9') break;
            over = plus(times(over, 10), c - '0');
            if (point) under = times(under, 10);
            ++digits;
        }
        if (digits == 0 || (at_ > 0 && at_ <= text_.size() && text_[at_ - 1] == '.' && !problem_))
            fail("this is not a calculation with numbers and + - * / ( )");
        return made(over, under);
    }

    std::string written(Fraction value) {
        const bool negative = value.over < 0;
        if (negative) value.over = -value.over;
        const Wide whole = value.over / value.under, rest = value.over % value.under;
        // Twice the rest in millionths, so that half can be seen.
        Wide millionths = plus(times(times(rest, decimals), 2), value.under) / times(value.under, 2);
        if (problem_) return {};
        Wide units = plus(whole, millionths / decimals);
        millionths %= decimals;
        std::string text, fraction;
        for (Wide left = units; left > 0 || text.empty(); left /= 10)
            text += static_cast<char>('0' + static_cast<int>(left % 10));
        std::reverse(text.begin(), text.end());
        for (Wide unit = decimals / 10; millionths > 0; unit /= 10) {
            fraction += static_cast<char>('0' + static_cast<int>(millionths / unit));
            millionths %= unit;
        }
        const bool zero = units == 0 && fraction.empty();
        if (!fraction.empty()) text += "." + fraction;
        return negative && !zero ? "-" + text : text;
    }

    std::string_view text_;
    size_t at_ = 0;
    std::optional<std::string_view> problem_;
};

}  // namespace

Result<std::string> calculate(std::string_view expression) {
    if (expression.size() > limits::calc_expression_bytes_max)
        return Error{ErrorCode::invalid_request,
                     "the expression is longer than calc_expression_bytes_max = " +
                         std::to_string(limits::calc_expression_bytes_max) + " bytes",
                     "expression"};
    return Calculation(expression).run();
}

}  // namespace mainstay
