#pragma once
// A node of a few lines, for tests of the door: turns that answer with an echo on a thread of their own, sessions kept
// in a map. What a test wants otherwise it puts into a hook. Guarded by one mutex; hooks run on the worker thread.

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <thread>

#include "gateway/bridge.h"
#include "runtime/base/random.h"

namespace mainstay {

/// Runs jobs in order on its own thread, as actors do for the real bridge.
class Worker {
  public:
    Worker() : thread_([this] { run(); }) {}
    ~Worker() {
        {
            std::lock_guard lock(mutex_);
            ended_ = true;
        }
        wake_.notify_all();
        thread_.join();
    }
    void post(std::function<void()> job) {
        {
            std::lock_guard lock(mutex_);
            jobs_.push_back(std::move(job));
        }
        wake_.notify_one();
    }

  private:
    void run() {
        std::unique_lock lock(mutex_);
        while (true) {
            wake_.wait(lock, [this] { return ended_ || !jobs_.empty(); });
            if (jobs_.empty()) return;
            auto job = std::move(jobs_.front());
            jobs_.pop_front();
            lock.unlock();
            job();
            job = nullptr;
            lock.lock();
        }
    }
    std::mutex mutex_;
    std::condition_variable wake_;
    std::deque<std::function<void()>> jobs_;
    bool ended_ = false;
    std::thread thread_;
};

inline ItemPtr make_message(Role role, std::string text, ItemStatus status = ItemStatus::completed) {
    auto item = std::make_shared<Item>();
    item->role = role;
    item->text = std::move(text);
    item->status = status;
    return item;
}

class FakeBridge : public Bridge {
  public:
    std::function<void(TurnRequest, Callback<TurnAnswer>)> on_create;
    std::function<void(TurnRequest, StreamCallback)> on_stream;
    std::function<std::optional<Error>()> refuses;  // asked for all that belongs to a shard; set before requests
    std::string reason;                             // not_ready_because
    std::vector<AgentPtr> agents;
    std::vector<ModelPtr> models;
    std::vector<ModelInfo> workers;  // set before the first request; after it on the worker thread
    bool inline_answers = false;     // answer on the caller's thread: the benchmark measures the door alone

    FakeBridge() {
        auto agent = std::make_shared<AgentSpec>();
        agent->name = "assistant";
        agent->version = 0xabc;
        agent->model = "scripted";
        agent->canonical_json = R"({"name":"assistant"})";
        agents.push_back(agent);
        auto model = std::make_shared<ModelSpec>();
        model->name = "scripted";
        models.push_back(model);
    }

    TurnRequest last_request() {
        std::lock_guard lock(mutex_);
        return last_request_;
    }
    size_t unsubscribed() {
        std::lock_guard lock(mutex_);
        return unsubscribed_;
    }

    /// A settled turn that answers `text`; kept, so that read_turn finds it.
    TurnAnswer make_turn(const TurnRequest& request, const std::string& text) {
        std::lock_guard lock(mutex_);
        auto turn = std::make_shared<Turn>();
        TurnAnswer answer;
        answer.session = request.conversation ? *request.conversation
                         : request.previous   ? request.previous->session
                                              : make_session_id(random_, 1'700'000'000'000);
        turn->no = TurnNo{++last_turn_[{TenantId{1}, answer.session}]};
        turn->status = TurnStatus::completed;
        turn->created_at = 1'700'000'000'123;
        turn->settled_at = 1'700'000'001'456;
        turn->agent = request.agent;
        turn->options = request.options;
        turn->items = request.items;
        turn->input_count = static_cast<uint32_t>(request.items.size());
        turn->items.push_back(make_message(Role::assistant, text));
        turn->usage.input_tokens = 11;
        turn->usage.output_tokens = 7;
        answer.turn = turn;
        answer.agent = agents.front();
        answer.previous = request.previous;
        answer.conversation = request.conversation.has_value();
        turns_[{answer.session, turn->no}] = answer;
        return answer;
    }

    std::string make_request_key(const Principal&, const std::function<std::string()>&) override {
        std::lock_guard lock(mutex_);
        return std::string(request_key_prefix) + to_text(make_session_id(random_, 1'700'000'000'000));
    }
    void create_turn(TurnRequest request, Callback<TurnAnswer> done) override {
        run([this, request = std::move(request), done = std::move(done)]() mutable {
            {
                std::lock_guard lock(mutex_);
                last_request_ = request;
            }
            if (refused(done)) return;
            if (on_create) {
                on_create(std::move(request), std::move(done));
                return;
            }
            if (request.agent != "assistant") {
                done(Error{ErrorCode::model_not_found, "There is no such model; see /v1/models.", "model"});
                return;
            }
            const auto text = "echo: " + (request.items.empty() ? std::string() : request.items.back()->text);
            done(make_turn(request, text));
        });
    }
    uint64_t stream_turn(TurnRequest request, StreamCallback on_event) override {
        run([this, request = std::move(request), on_event = std::move(on_event)]() mutable {
            if (refuses)
                if (auto error = refuses()) return on_event(StreamFailed{*error});
            if (on_stream) {
                on_stream(std::move(request), std::move(on_event));
                return;
            }
            const auto settled = make_turn(request, "echo: " + request.items.back()->text);
            auto begun = std::make_shared<Turn>(*settled.turn);
            begun->status = TurnStatus::in_progress;
            begun->items.resize(begun->input_count);
            auto accepted = settled;
            accepted.turn = begun;
            on_event(StreamAccepted{accepted});
            on_event(StreamDelta{0, 1, "echo: "});
            on_event(StreamDelta{0, 1, request.items.back()->text});
            on_event(StreamItems{begun->input_count, {settled.turn->items.back()}, 0, 1});
            on_event(StreamEnded{settled});
        });
        return ++subscriptions_;
    }
    void unsubscribe(uint64_t) override {
        std::lock_guard lock(mutex_);
        ++unsubscribed_;
    }
    void read_turn(const Principal&, const ResponseId& id, Callback<TurnAnswer> done) override {
        run([this, id, done = std::move(done)] {
            if (refused(done)) return;
            std::unique_lock lock(mutex_);
            const auto found = turns_.find(id);
            if (found == turns_.end()) {
                lock.unlock();
                done(Error{ErrorCode::response_not_found, "Response '" + to_text(id) + "' was not found.", {}});
                return;
            }
            auto answer = found->second;
            lock.unlock();
            done(std::move(answer));
        });
    }
    void cancel_turn(const Principal& principal, const ResponseId& id, Callback<TurnAnswer> done) override {
        read_turn(principal, id, std::move(done));
    }

    void create_session(const Principal&, std::string metadata, std::vector<ItemPtr> items, std::string, uint64_t,
                        Callback<SessionInfo> done) override {
        run([this, metadata = std::move(metadata), items = std::move(items), done = std::move(done)]() mutable {
            if (refused(done)) return;
            std::unique_lock lock(mutex_);
            SessionInfo info;
            info.id = make_session_id(random_, 1'700'000'000'000);
            info.created_at = info.updated_at = 1'700'000'000'000;
            info.principal = "admin";
            info.metadata = std::move(metadata);
            info.state = "idle";
            info.conversation = true;
            info.items = items.size();
            sessions_[info.id] = info;
            add(info.id, std::move(items));
            lock.unlock();
            done(std::move(info));
        });
    }
    void read_session(const Principal&, const SessionId& id, Callback<SessionInfo> done) override {
        with_session(id, std::move(done), [](SessionInfo& info) { return info; });
    }
    void set_metadata(const Principal&, const SessionId& id, std::string metadata,
                      Callback<SessionInfo> done) override {
        with_session(id, std::move(done), [metadata](SessionInfo& info) {
            info.metadata = metadata;
            return info;
        });
    }
    void delete_session(const Principal&, const SessionId& id, Callback<SessionInfo> done) override {
        with_session(id, std::move(done), [this, id](SessionInfo& info) {
            auto copy = info;
            sessions_.erase(id);
            return copy;
        });
    }
    void list_sessions(const Principal&, std::optional<SessionId> after, size_t limit,
                       Callback<std::vector<SessionInfo>> done) override {
        run([this, after, limit, done = std::move(done)] {
            std::unique_lock lock(mutex_);
            std::vector<SessionInfo> out;
            for (const auto& [id, info] : sessions_)
                if ((!after || id > *after) && out.size() < limit) out.push_back(info);
            lock.unlock();
            done(std::move(out));
        });
    }
    void list_items(const Principal&, const SessionId& id, ItemQuery query, Callback<ItemPage> done) override {
        with_session(id, std::move(done), [this, id, query](SessionInfo&) {
            ItemPage page;
            for (const auto& entry : items_[id])
                if ((!query.after || entry.id > *query.after) && page.items.size() < query.limit)
                    page.items.push_back(entry);
            return page;
        });
    }
    void read_item(const Principal&, const SessionId& id, const ItemId& item, Callback<ItemEntry> done) override {
        run([this, id, item, done = std::move(done)] {
            if (refused(done)) return;
            std::unique_lock lock(mutex_);
            for (const auto& entry : items_[id]) {
                if (entry.id != item) continue;
                auto copy = entry;
                lock.unlock();
                done(std::move(copy));
                return;
            }
            lock.unlock();
            done(Error{ErrorCode::item_not_found, "Item was not found.", {}});
        });
    }
    void add_items(const Principal&, const SessionId& id, std::vector<ItemPtr> items,
                   Callback<ItemPage> done) override {
        with_session(id, std::move(done), [this, id, items = std::move(items)](SessionInfo&) {
            ItemPage page;
            const auto before = items_[id].size();
            add(id, items);
            page.items.assign(items_[id].begin() + static_cast<std::ptrdiff_t>(before), items_[id].end());
            return page;
        });
    }
    void list_events(const Principal&, const SessionId& id, uint64_t after, size_t,
                     Callback<std::vector<EventEntry>> done) override {
        with_session(id, std::move(done), [after](SessionInfo&) {
            std::vector<EventEntry> out;
            if (after < 1) out.push_back({1, 1'700'000'000'000, TurnNo{0}, "SessionCreated", R"({"ephemeral":false})"});
            return out;
        });
    }
    void resolve_unknown(const Principal& principal, const SessionId& id, const ItemId& call, Resolution,
                         std::string result_json, Callback<TurnAnswer> done) override {
        {
            std::lock_guard lock(mutex_);
            last_result = std::move(result_json);
        }
        read_turn(principal, {id, call.turn}, std::move(done));
    }
    std::vector<AgentPtr> list_agents(const Principal&) override { return agents; }
    std::vector<ModelPtr> list_models(const Principal&) override { return models; }
    void apply_agent(const Principal&, std::string text, bool is_toml, bool dry_run, Callback<Applied> done) override {
        run([this, text = std::move(text), is_toml, dry_run, done = std::move(done)] {
            if (refused(done)) return;
            done(Applied{agents.front(), !dry_run, (is_toml ? "toml: " : "json: ") + text});
        });
    }
    void list_workers(const Principal&, Callback<std::vector<ModelInfo>> done) override {
        run([this, done = std::move(done)] { done(workers); });
    }
    void drain_worker(const Principal&, const std::string& model, uint32_t index, bool on,
                      Callback<ModelInfo> done) override {
        run([this, model, index, on, done = std::move(done)] {
            for (ModelInfo& one : workers) {
                if (one.model != model || index >= one.workers.size()) continue;
                one.workers[index].state = on ? WorkerState::drained : WorkerState::up;
                return done(one);
            }
            done(Error{ErrorCode::not_found, "there is no such worker", "worker"});
        });
    }
    std::string not_ready_because() const override { return reason; }
    std::string metrics_text() override { return "# HELP up\n"; }

    std::string last_result;

  private:
    void run(std::function<void()> job) { inline_answers ? job() : worker_.post(std::move(job)); }
    void add(const SessionId& id, const std::vector<ItemPtr>& items) {
        for (const auto& item : items)
            items_[id].push_back({{id, TurnNo{1}, static_cast<uint16_t>(items_[id].size())}, item});
    }
    template <class T>
    bool refused(const Callback<T>& done) {
        const auto error = refuses ? refuses() : std::nullopt;
        if (error) done(*error);
        return error.has_value();
    }
    template <class T, class Function>
    void with_session(const SessionId& id, Callback<T> done, Function function) {
        run([this, id, done = std::move(done), function = std::move(function)] {
            if (refused(done)) return;
            std::unique_lock lock(mutex_);
            const auto found = sessions_.find(id);
            if (found == sessions_.end()) {
                lock.unlock();
                done(Error{ErrorCode::session_not_found, "Conversation was not found.", {}});
                return;
            }
            auto out = function(found->second);
            lock.unlock();
            done(std::move(out));
        });
    }

    std::mutex mutex_;
    SeededRandom random_{1};
    std::map<SessionKey, uint32_t> last_turn_;
    std::map<ResponseId, TurnAnswer> turns_;
    std::map<SessionId, SessionInfo> sessions_;
    std::map<SessionId, std::vector<ItemEntry>> items_;
    TurnRequest last_request_;
    size_t unsubscribed_ = 0;
    uint64_t subscriptions_ = 0;
    Worker worker_;  // last: it ends before what its jobs use
};

}  // namespace mainstay
