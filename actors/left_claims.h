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
        size_t heard = 0;                   // bytes of what it said, in all
        size_t again = 0;                   // of them, what its node says once more, because it was asked again
        bool named = true;                  // by its node, since that was asked last
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
    struct Again {};  // its node is to be asked again, after a while
    struct Late {     // it was named when nobody listened any more
        LeftName name;
    };
    using Next = std::variant<std::monostate, Said, Ended, Missed, Again, Late>;

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
    /// After Next of Again. Null: it cannot be asked any more.
    Next asked_again(uint32_t source, std::shared_ptr<LinkCall> call) {
        asked_.at(source).call = std::move(call);
        if (!asked_.at(source).call) return missed(source, [](const Work&) { return true; });
        for (Work& work : works_) {
            if (work.source != source) continue;
            work.named = false;
            work.again = work.heard;
        }
        return {};
    }
    void forget(uint64_t id) {
        std::erase_if(works_, [&](const Work& work) { return work.id == id; });
    }

    Next came(LeftNews news) {
        Source& source = sources_.at(news.source);
        if (!news.part) {
            source.listed = true;
            asked_.at(news.source).call = nullptr;  // it holds the session's actor
            const bool waits = std::any_of(works_.begin(), works_.end(), [&](const Work& work) {
                return work.source == news.source && work.id != 0 && !work.ended;
            });
            if (news.failed && waits && ++source.failures <= limits::left_reclaims_max) return Again{};
            return missed(news.source, [](const Work&) { return true; });
        }
        if (std::holds_alternative<LeftListed>(*news.part)) {
            source.listed = true;
            return missed(news.source, [](const Work& work) { return !work.named; });
        }
        if (const auto* here = std::get_if<LeftHere>(&*news.part)) {
            if (Work* known = work_of(news.source, here->work)) {
                known->named = true;
                return {};
            }
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
        Work* found = work_of(news.source, name);
        if (!found || found->ended) return {};
        if (auto* delta = std::get_if<LeftDelta>(&*news.part)) {
            const size_t known = std::min(found->again, delta->text.size());
            found->again -= known;
            delta->text.erase(0, known);
            found->heard += delta->text.size();
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
        uint32_t failures = 0;
    };

    Work* work_of(uint32_t source, const LeftName& name) {
        for (Work& work : works_)
            if (work.source == source && work.name == name) return &work;
        return nullptr;
    }
    /// What nobody took is forgotten.
    template <class Which>
    Next missed(uint32_t source, Which which) {
        Missed missed;
        std::erase_if(works_, [&](Work& work) {
            if (work.source != source || work.outcome || work.ended || !which(work)) return false;
            if (work.id == 0) return true;
            work.ended = true;
            missed.works.emplace_back(work.id, work.name);
            return false;
        });
        return missed;
    }

    const uint64_t number_;
    std::vector<LeftWork::Asked> asked_;
    std::vector<Source> sources_;
    std::list<Work> works_;  // addresses stay
    bool closed_ = false;
};

}  // namespace mainstay
