#pragma once
// An expected failure: a value or an Error. (std::expected is absent from g++ 12.) Bugs use INVARIANT, outcomes of the
// domain (a tool that failed, a policy that denied) are events, never Errors.

#include <optional>
#include <string>
#include <utility>
#include <variant>

#include "runtime/base/error_code.h"
#include "runtime/base/invariant.h"

namespace mainstay {

struct Error {
    ErrorCode code = ErrorCode::internal;
    std::string message;  // for people; names the bound or field that refused
    std::string param;    // request field, where there is one
};

template <class T>
class [[nodiscard]] Result {
  public:
    Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
    Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}
    Result(ErrorCode code, std::string message, std::string param = {})
        : state_(std::in_place_index<1>, Error{code, std::move(message), std::move(param)}) {}

    bool ok() const { return state_.index() == 0; }
    explicit operator bool() const { return ok(); }
    T& value() & {
        INVARIANT(ok(), "value of a failed Result");
        return std::get<0>(state_);
    }
    const T& value() const& {
        INVARIANT(ok(), "value of a failed Result");
        return std::get<0>(state_);
    }
    T&& value() && {
        INVARIANT(ok(), "value of a failed Result");
        return std::get<0>(std::move(state_));
    }
    T& operator*() & { return value(); }
    const T& operator*() const& { return value(); }
    T* operator->() { return &value(); }
    const T* operator->() const { return &value(); }
    const Error& error() const {
        INVARIANT(!ok(), "error of a successful Result");
        return std::get<1>(state_);
    }

  private:
    std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
  public:
    Result() = default;
    Result(Error error) : error_(std::move(error)) {}
    Result(ErrorCode code, std::string message, std::string param = {})
        : error_(Error{code, std::move(message), std::move(param)}) {}

    bool ok() const { return !error_; }
    explicit operator bool() const { return ok(); }
    const Error& error() const {
        INVARIANT(!ok(), "error of a successful Result");
        return *error_;
    }

  private:
    std::optional<Error> error_;
};

}  // namespace mainstay
