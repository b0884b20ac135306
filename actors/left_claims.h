#pragma once
// What a session's actor hears of the session's work that goes on where it was led before (actors/left_work.h), until
// all of it has ended. Pure; owned by the session actor.

#include <algorithm>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "actors/left_work.h"

namespace mainstay {

class LeftClaims {
  public:
    struct Work {
        LeftName name;
        uint32_t source = 0;                // index of the node
        uint64_t id = 0;                    // as the session knows it in flight; 0: not taken
        std::string said;                   // before it was taken
        std::optional<LeftPart> outcome{};  // likewise
        bool ended = false;                 // the session was given its outcome
    };
    /// What the session is to do with a piece of news.
    struct Said {
        uint64_t id = 0;
        std::string text;
    };
    struct Ended {
        uint64_t id = 0;
        LeftPart outcome;
    };
    struct Missed {  // their node cannot be reached any more
        std::vector<std::pair<uint64_t, LeftName>> works;
    };
    struct Late {  // it was named when nobody listened any more
        LeftName name;
    };
    using Next = std::variant<std::monostate, Said, Ended, Missed, Late>;

    LeftClaims(uint64_t number, std::vector<LeftWork::Asked> asked) : number_(number), asked_(std::move(asked)) {
        sources_.resize(asked_.size());
    }
    ~LeftClaims() {
        for (const auto& asked : asked_)
            if (asked.call) asked.call->cancel();
    }
    LeftClaims(const LeftClaims&) = delete;
    LeftClaims& operator=(const LeftClaims&) = delete;

    uint64_t number() const { return number_; }
    const NodeUuid& node(uint32_t source) const { return asked_.at(source).node; }
    std::list<Work>& works() { return works_; }
    /// Every node has named what it has.
    bool listed() const {
        return std::all_of(sources_.begin(), sources_.end(), [](const Source& source) { return source.listed; });
    }
    /// From now on what is named is late, and what was not taken stays untaken.
    void close() { closed_ = true; }

    /// Null: nobody has it, or it was taken.
    Work* find(const LeftName& name) {
        for (Work& work : works_)
            if (work.name == name && work.id == 0) return &work;
        return nullptr;
    }
    void forget(uint64_t id) {
        std::erase_if(works_, [&](const Work& work) { return work.id == id; });
    }

    Next came(LeftNews news) {
        Source& source = sources_.at(news.source);
        if (!news.part) {
            source.listed = true;
            Missed missed;
            for (auto at = works_.begin(); at != works_.end();) {
                if (at->source != news.source || at->outcome || at->ended) {
                    ++at;
                } else if (at->id == 0) {
                    at = works_.erase(at);
                } else {
                    at->ended = true;
                    missed.works.emplace_back(at->id, at->name);
                    ++at;
                }
            }
            return missed;
        }
        if (std::holds_alternative<LeftListed>(*news.part)) {
            source.listed = true;
            return {};
        }
        if (const auto* here = std::get_if<LeftHere>(&*news.part)) {
            if (closed_) return Late{here->work};
            works_.push_back({here->work, news.source, 0, {}, {}});
            return {};
        }
        const LeftName& name = std::visit(
            [](const auto& part) -> const LeftName& {
                if constexpr (requires { part.work; }) return part.work;
                static const LeftName none;
                return none;
            },
            *news.part);
        const auto found = std::find_if(works_.begin(), works_.end(), [&](const Work& work) {
            return work.source == news.source && work.name == name;
        });
        if (found == works_.end()) return {};
        if (auto* delta = std::get_if<LeftDelta>(&*news.part)) {
            if (found->id != 0) return Said{found->id, std::move(delta->text)};
            found->said += delta->text;
            return {};
        }
        if (found->id == 0) {
            found->outcome = std::move(*news.part);
            return {};
        }
        found->ended = true;
        return Ended{found->id, std::move(*news.part)};
    }

  private:
    struct Source {
        bool listed = false;
    };
    const uint64_t number_;
    const std::vector<LeftWork::Asked> asked_;
    std::vector<Source> sources_;
    std::list<Work> works_;  // addresses stay
    bool closed_ = false;
};

}  // namespace mainstay
