#pragma once
// One tool server as a child process: three pipes, a process group of its own, a minimal environment. Invariants: the
// child dies with the thread that started it (PR_SET_PDEATHSIG), so not even `kill -9` of the daemon leaves it behind;
// it inherits no descriptor but its three; whoever destroys this object has killed the group and reaped the child, so
// there is no zombie. All descriptors of ours are non-blocking. Owned by the thread that started it, which must live as
// long as the child.

#include <sys/types.h>

#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "runtime/base/result.h"

namespace mainstay {

class ChildProcess {
  public:
    /// `command`: argv; a name without a slash is looked up in the child's PATH. The environment is PATH, HOME and LANG
    /// of the daemon, and `env` over them. Waits for the exec (milliseconds). Errors: tool_unavailable, naming the
    /// program and the reason.
    static Result<std::unique_ptr<ChildProcess>> start(const std::vector<std::string>& command,
                                                       const std::map<std::string, std::string>& env);
    ~ChildProcess();
    ChildProcess(const ChildProcess&) = delete;
    ChildProcess& operator=(const ChildProcess&) = delete;

    pid_t pid() const { return pid_; }
    int in() const { return in_; }    // we write; -1 once closed
    int out() const { return out_; }  // we read; -1 once closed
    int err() const { return err_; }
    int pidfd() const { return pidfd_; }  // readable once the child has exited
    void close_in();
    void close_out();
    void close_err();
    /// To every process of the group. Nothing once reaped.
    void signal_group(int signal);
    /// Takes the exit status if the child has exited; the rest of its group is killed first. True once reaped.
    bool reap();
    /// "exited with status 3" or "was killed by signal 9", once reaped.
    const std::string& end() const { return end_; }
    /// Bytes of its input that nobody has read and nobody ever can: 0 while any process holds the reading end.
    size_t unread() const;

  private:
    ChildProcess() = default;

    pid_t pid_ = -1;
    int in_ = -1, out_ = -1, err_ = -1, pidfd_ = -1;
    bool reaped_ = false;
    std::string end_;
};

}  // namespace mainstay
