"""One simulated Linux host with its tasks and files: what each operation does to it and what the call returns.

The state is what the kernel has: zones with free pages and marks, tasks with a policy and a rotation, inodes with a
shared policy and present pages, mappings with VMAs. Which zone backs a page is decided by :mod:`workbench.kernels.placement`.
Sources are named at each operation; the kernel of record is Linux 7.3.

A method ``_name`` carries out the operation ``name`` and returns a :class:`Result`. A refused operation is a result.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from workbench import policy as mp
from workbench import scenario as sc
from workbench.engine import conversions as system_conversion
from workbench.engine import migration
from workbench.engine.conversions import Conversions
from workbench.engine.devices import Devices
from workbench.engine.filemap import FileMap, Int64s, no_intervals
from workbench.engine.generators import in_turns, shared_turns
from workbench.engine.host_state import HostState, OutOfMemory, Turns
from workbench.engine.kexec import kexec
from workbench.engine.mappings import Mapping
from workbench.engine.objects import (
    GUEST_MEMFD_FLAG_INIT_SHARED,
    GUEST_MEMFD_FLAG_MMAP,
    Inode,
    OpenFile,
    Result,
    Thread,
    failed,
)
from workbench.errors import WorkbenchError
from workbench.kernels import mempolicy
from workbench.units import PAGE_SIZE

FALLOC_FL_KEEP_SIZE = 1
MADV_DONTNEED, MADV_REMOVE, MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_DONTNEED_LOCKED = 4, 9, 22, 23, 24
_MADV_MARKS_ONLY = {*range(4), *range(10, 18), 19, 20, 21}  # FREE and WIPEONFORK are refused for files
KVM_EXIT_HLT, KVM_EXIT_MMIO = 5, 6
_FIRST_DESCRIPTOR = 3  # after stdin, stdout and stderr


class System(HostState):
    """The host while a scenario runs, with the system calls that change it."""

    def __init__(self, scenario: sc.Scenario, cancelled: Callable[[], bool] = lambda: False) -> None:
        super().__init__(scenario, cancelled)
        self.descriptors: set[int] = set(range(_FIRST_DESCRIPTOR))
        self.conversions = Conversions(self) if system_conversion.wanted(scenario) else None
        self.devices = Devices(self)
        self.hogs: list[tuple[int, Int64s]] = []
        self.memfds = 0
        self.vcpu_open = False
        self.killed = False

    # --------------------------------------------------------------------------------------------- operations

    def apply(self, operation: sc.Operation) -> Result:
        """Carry out one operation."""
        if self.killed:
            return failed(errno.ESRCH, killed=True)
        name = operation.op  # type: ignore[attr-defined]  # every operation of the union has it
        try:
            result: Result = getattr(self, f"_{name}")(operation)
        except OutOfMemory:
            self._oom_kill()
            return failed(errno.ENOMEM, killed=True)
        if self.conversions is not None and not self.conversions.enter_all() and not result.errno:
            return failed(errno.ENOMEM, vmemmap=True)
        return result

    def _file(self, name: str) -> OpenFile | None:
        return self.files.get(name)

    # ........................................................................................ files and mappings

    def _descriptor(self) -> int:
        number = next(number for number in range(len(self.descriptors) + 1) if number not in self.descriptors)
        self.descriptors.add(number)
        return number

    def _create(self, operation: sc.Create) -> Result:
        """virt/kvm/guest_memfd.c: kvm_gmem_create; then mmap if the file has the flag."""
        size = self.scenario.guest.memory if operation.size is None else operation.size
        flags = operation.raw_flags
        if flags is None:
            flags = sum({"mmap": GUEST_MEMFD_FLAG_MMAP, "init_shared": GUEST_MEMFD_FLAG_INIT_SHARED}[name]
                        for name in set(operation.flags))  # fmt: skip
        detail = {"mmap_errno": 0} if flags & GUEST_MEMFD_FLAG_MMAP else {}
        known = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED
        if flags & ~known or size <= 0 or size % (PAGE_SIZE << self.order):
            return failed(errno.EINVAL, **detail)
        policy, error = self._policy_of(operation)
        if self.scenario.guest.policy_interface == "create" and error:
            return failed(error)
        inode = Inode(operation.file, size // PAGE_SIZE, "guest_memfd", flags, self.order)
        if self.order and self.scenario.guest.small_page_fallback:
            inode.small = FileMap()
        if self.scenario.guest.policy_interface == "create" and policy is not None:
            inode.shared_policy.set(0, inode.pages, policy)
        if self.conversions is not None and inode.pages:
            self.conversions.add(inode)
        return self._open(operation.file, inode, mapped=bool(flags & GUEST_MEMFD_FLAG_MMAP), **detail)

    def _memfd(self, operation: sc.Memfd) -> Result:
        """memfd_create: a tmpfs inode, whose interleave index is shifted by its inode number."""
        self.memfds += 1
        number = self.memfds if operation.inode is None else operation.inode
        inode = Inode(operation.file, operation.size // PAGE_SIZE, "memfd", ilx_base=number)
        return self._open(operation.file, inode, mapped=True)

    def _open(self, name: str, inode: Inode, mapped: bool, **detail: Any) -> Result:
        if self.free_pfns is not None:
            inode.pfns = self.free_pfns.new_file()
        mapping = Mapping(inode.pages) if mapped and inode.pages else None
        if mapping is not None:
            inode.mappings.append(mapping)
        descriptor = self._descriptor()
        self.files[name] = OpenFile(inode, descriptor, mapping)
        return Result(descriptor, 0, detail)

    def _alias(self, operation: sc.Alias) -> Result:
        source = self._file(operation.of)
        if source is None or source.descriptor is None:
            return failed(errno.EBADF)
        if source.inode.kind == "guest_memfd" and not source.inode.flags & GUEST_MEMFD_FLAG_MMAP:
            return failed(errno.ENODEV)
        mapping = Mapping(source.inode.pages)
        source.inode.mappings.append(mapping)
        self.files[operation.file] = OpenFile(source.inode, self._descriptor(), mapping)
        return Result()

    def _mmap(self, operation: sc.Mmap) -> Result:
        """virt/kvm/guest_memfd.c: kvm_gmem_mmap."""
        file = self._file(operation.file)
        if file is None or file.descriptor is None:
            return failed(errno.EBADF)
        if file.inode.kind == "guest_memfd":
            if not file.inode.flags & GUEST_MEMFD_FLAG_MMAP:
                return failed(errno.ENODEV)
            if operation.private:
                return failed(errno.EINVAL)
        mapping = Mapping(file.inode.pages)
        file.inode.mappings.append(mapping)
        if file.mapping is None:
            file.mapping = mapping
        return Result()

    def _munmap(self, operation: sc.Munmap) -> Result:
        file = self._file(operation.file)
        if file is not None and file.mapping is not None:
            file.inode.mappings.remove(file.mapping)
            file.mapping = None
        return Result()

    def _close(self, operation: sc.Close) -> Result:
        """The last descriptor and mapping gone, the inode dies and its pages are freed."""
        file = self._file(operation.file)
        if file is None or file.descriptor is None:
            return failed(errno.EBADF)
        self._munmap(sc.Munmap(file=operation.file))
        self.descriptors.discard(file.descriptor)
        file.descriptor = None
        if not file.inode.mappings and not self._is_open(file.inode):
            self._free_inode(file.inode)
        return Result()

    def _free_inode(self, inode: Inode) -> None:
        if self.conversions is not None and self.conversions.of(inode) is not None:
            self.conversions.forget(inode)
        else:
            self.erase(inode, 0, np.iinfo(np.int64).max)

    def _is_open(self, inode: Inode) -> bool:
        return any(file.inode is inode and file.descriptor is not None for file in self.files.values())

    def _oom_kill(self) -> None:
        self.killed = True
        for inode in {id(file.inode): file.inode for file in self.files.values()}.values():
            self._free_inode(inode)

    # ...................................................................................................... policy

    def _policy_of(self, operation: Any) -> tuple[mp.Mempolicy | None, int]:
        """mpol_new and mpol_set_nodemask for an operation's mode and nodes: (policy, errno)."""
        mode, flags, error = mp.sanitize_mpol_flags(operation.mode_word)
        if error:
            return None, error
        nodes = mp.parse_nodes(operation.nodes)
        error = mp.get_nodes(nodes)
        if error:
            return None, error
        policy, error = mp.mpol_new(mode, flags, nodes)
        if error:
            return None, error
        return mp.mpol_set_nodemask(policy, self.mems_allowed & self.n_memory)

    def _mbind(self, operation: sc.Mbind) -> Result:
        """mm/mempolicy.c: kernel_mbind, do_mbind."""
        interface = self.scenario.guest.policy_interface
        file = self._file(operation.file)
        if interface != "mbind" and file is not None and file.inode.kind == "guest_memfd":
            # Before v4 of the series the VMA of a guest_memfd had no set_policy: the call succeeds, nothing changes.
            return Result(0, 0, {"no_effect": True})
        mode, _, error = mp.sanitize_mpol_flags(operation.mode_word)
        if error or mp.get_nodes(mp.parse_nodes(operation.nodes)):
            return failed(errno.EINVAL)
        flags = operation.raw_flags
        if flags is None:
            flags = sum(mp.MBIND_FLAGS[name] for name in set(operation.flags))
        if flags & ~(mp.MF_STRICT | mp.MF_MOVE | mp.MF_MOVE_ALL) or operation.offset % PAGE_SIZE:
            return failed(errno.EINVAL)
        if mode == mp.DEFAULT:
            flags &= ~mp.MF_STRICT
        start, end = self.pages(operation, file.inode.pages if file else 0)
        if start == end:
            return Result()
        policy, error = self._policy_of(operation)
        if error:
            return failed(error)
        if file is None or file.mapping is None:
            return failed(errno.EFAULT)
        mapping = file.mapping
        if start >= mapping.pages or (end > mapping.pages and policy is not None):
            return failed(errno.EFAULT)
        end = min(end, mapping.pages)
        misplaced, parts, wrong = 0, no_intervals(), ~self._zones_on(mp.parse_nodes(operation.nodes))
        moving = flags & (mp.MF_MOVE | mp.MF_MOVE_ALL)
        if flags:  # queue_pages_range: pages in the page tables on other nodes than the raw user mask
            once = bool(moving) and not flags & mp.MF_MOVE_ALL
            parts = migration.seen_by(file.inode, mapping, start, end, mapped_once=once)
            misplaced = migration.count_on(self, file.inode, parts, wrong)
        if misplaced and flags == mp.MF_STRICT:
            return failed(errno.EIO)
        mapping.set_policy(start, end, policy, file.inode.shared_policy.set)
        if moving and file.inode.kind == "memfd":
            migration.move_to_policy(self, self.task(operation), file.inode, parts, wrong)
            misplaced = 0
        return failed(errno.EIO) if misplaced and flags & mp.MF_STRICT else Result()

    def _zones_on(self, mask: int) -> np.ndarray:
        return np.array([bool(mask >> int(self.node_ids[node]) & 1) for node in self.zone_node], bool)

    def _fbind(self, operation: sc.Fbind) -> Result:
        """fbind (v3 of the series): as mbind, but on the descriptor and exactly the range that was asked for."""
        if self.scenario.guest.policy_interface != "fbind":
            return failed(errno.ENOSYS)
        file = self._file(operation.file)
        if file is None or file.descriptor is None:
            return failed(errno.EBADF)
        policy, error = self._policy_of(operation)
        start, end = self.pages(operation, file.inode.pages)
        if error or operation.offset % PAGE_SIZE or end > file.inode.pages:
            return failed(error or errno.EINVAL)
        file.inode.shared_policy.set(start, end, policy)
        return Result()

    def _policy(self, operation: sc.SetPolicy) -> Result:
        """Set a range policy through the interface that the guest has, whichever generation it is of."""
        interface = self.scenario.guest.policy_interface
        fields = operation.model_dump(exclude={"op"})
        if interface == "fbind":
            return self._fbind(sc.Fbind(**fields))
        if interface == "mbind":
            return self._mbind(sc.Mbind(**fields))
        if interface == "create":
            return failed(errno.EOPNOTSUPP, reason="the policy was fixed when the file was created")
        return Result(0, 0, {"no_effect": True})

    def _set_mempolicy(self, operation: sc.SetMempolicy) -> Result:
        """mm/mempolicy.c: do_set_mempolicy."""
        policy, error = self._policy_of(operation)
        if error:
            return failed(error)
        task = self.task(operation)
        task.policy = policy
        if policy is not None and policy.interleaves:
            self.rotations[task.index] = (self.nodes - 1, 0)
        return Result()

    def _reset_rotation(self, operation: sc.ResetRotation) -> Result:
        task = self.task(operation)
        task.policy = None
        self.rotations[task.index] = (self.nodes - 1, 0)
        return Result()

    def _get_mempolicy(self, operation: sc.GetMempolicy) -> Result:
        """mm/mempolicy.c: do_get_mempolicy."""
        task = self.task(operation)
        if operation.file is None:
            return self._get_task_policy(task, operation.node)
        file = self._file(operation.file)
        page = operation.offset // PAGE_SIZE
        mapping = file.mapping if file else None
        if file is None or mapping is None or mapping.vma_at(page) is None:
            return failed(errno.EFAULT, **({} if operation.node else _reported(None)))
        if not operation.node:
            return Result(0, 0, _reported(file.inode.shared_policy.lookup(page)))
        if file.inode.private:
            return failed(errno.EFAULT)
        self.touch(task, file.inode, page, page + 1)
        mapping.map(page, page + 1)
        zone = int(file.inode.zones_of(np.array([page]))[0])
        return Result(0, 0, {"node": int(self.node_ids[self.zone_node[zone]])})

    def _get_task_policy(self, task: Thread, node: bool) -> Result:
        if not node:
            return Result(0, 0, _reported(task.policy))
        if task.policy is None or not task.policy.interleaves:
            return failed(errno.EINVAL)
        rotation = self.rotations[task.index]
        following = int(rotation[0])
        if task.policy.mode == mp.INTERLEAVE or rotation[1] == 0:
            following = int(mempolicy.next_node_in(following, self.mask(task.policy.nodes)))
        return Result(0, 0, {"node": int(self.node_ids[following])})

    def _set_mempolicy_home_node(self, operation: sc.SetMempolicyHomeNode) -> Result:
        """mm/mempolicy.c: set_mempolicy_home_node: works on vm_policy, VMA by VMA."""
        file = self._file(operation.file)
        if operation.offset % PAGE_SIZE or operation.home_node not in self.index_of_node:
            return failed(errno.EINVAL)
        start, end = self.pages(operation, file.inode.pages if file else 0)
        if start == end:
            return Result()
        if file is None or file.mapping is None:
            return failed(errno.ENOENT)
        error = errno.ENOENT
        for vma in list(file.mapping.vmas):
            if vma.end <= start or vma.start >= end or vma.policy is None:
                continue
            if vma.policy.mode not in (mp.BIND, mp.PREFERRED_MANY):
                error = errno.EOPNOTSUPP
                break
            new = replace(vma.policy, home_node=operation.home_node)
            low, high = max(start, vma.start), min(end, vma.end)
            file.mapping.set_policy(low, high, new, file.inode.shared_policy.set)
            error = 0
        return failed(error) if error else Result()

    def _set_weights(self, operation: sc.SetWeights) -> Result:
        """mm/mempolicy.c: node_store; without values, the weights found at boot come back."""
        if operation.weights is None:
            self.weights = self.boot_weights.copy()
            return Result(0, 0, {"errno": {}, "weights": self._weights_by_node()})
        errors = {}
        for node, weight in operation.weights.items():
            errors[str(node)] = 0
            if node not in self.index_of_node or not self.has_memory[self.index_of_node[node]]:
                errors[str(node)] = errno.ENOENT  # only nodes with memory have a file
            elif not 1 <= weight <= 255:
                errors[str(node)] = errno.EINVAL
            else:
                self.weights[self.index_of_node[node]] = weight
        return Result(0, 0, {"errno": errors, "weights": self._weights_by_node()})

    def _weights_by_node(self) -> dict[str, int]:
        return {str(self.node_ids[i]): int(self.weights[i]) for i in np.flatnonzero(self.has_memory)}

    def _sched_setaffinity(self, operation: sc.SchedSetaffinity) -> Result:
        if operation.cpu < 0:
            return Result()
        if all(operation.cpu not in node.cpus for node in self.host.nodes):
            return failed(errno.EINVAL)
        self.task(operation).nid = self.index_of_node[self.host.node_of_cpu(operation.cpu)]
        return Result()

    def _set_mems_allowed(self, operation: sc.SetMemsAllowed) -> Result:
        """kernel/cgroup/cpuset.c: task and VMA policies are rebound, shared policies of inodes never are."""
        mems = self.n_memory if operation.mems is None else mp.parse_nodes(operation.mems) & self.n_memory
        if not mems:
            return failed(errno.EINVAL)
        self.cpusets_enabled = True
        if mems == self.mems_allowed:
            return Result()  # cpuset_attach leaves tasks alone when neither CPUs nor mems change
        self.mems_allowed = mems
        for task in self.tasks.values():
            task.policy = mp.mpol_rebind(task.policy, mems)
        for file in self.files.values():
            for mapping in file.inode.mappings:
                for vma in mapping.vmas:
                    vma.policy = mp.mpol_rebind(vma.policy, mems)
        return Result()

    # ............................................................................................ pages come and go

    def _fallocate(self, operation: sc.Fallocate) -> Result:
        """virt/kvm/guest_memfd.c: kvm_gmem_fallocate, kvm_gmem_allocate; tmpfs grows instead of refusing."""
        file = self._file(operation.file)
        if file is None or file.descriptor is None:
            return failed(errno.EBADF)
        inode = file.inode
        gmem = inode.kind == "guest_memfd"
        mode = operation.mode
        if mode is None:
            mode = FALLOC_FL_KEEP_SIZE if gmem else 0
        length = inode.pages * PAGE_SIZE - operation.offset if operation.length is None else operation.length
        if length <= 0:
            return failed(errno.EINVAL)
        if gmem:
            if mode != FALLOC_FL_KEEP_SIZE:
                return failed(errno.EOPNOTSUPP)
            size = PAGE_SIZE << inode.order
            if operation.offset % size or length % size:
                return failed(errno.EINVAL)
            if operation.offset + length > inode.pages * PAGE_SIZE:
                return failed(errno.EINVAL)
        elif mode not in (0, FALLOC_FL_KEEP_SIZE):
            return failed(errno.EOPNOTSUPP)
        start, end = operation.offset // PAGE_SIZE, -(-(operation.offset + length) // PAGE_SIZE)
        return self._allocated(self.touch(self.task(operation), inode, start, end))

    @staticmethod
    def _allocated(placed: bool) -> Result:
        return Result() if placed else failed(errno.ENOMEM)

    def _punch_hole(self, operation: sc.PunchHole) -> Result:
        """virt/kvm/guest_memfd.c: kvm_gmem_punch_hole."""
        file = self._file(operation.file)
        if file is None or file.descriptor is None:
            return failed(errno.EBADF)
        inode = file.inode
        length = inode.pages * PAGE_SIZE - operation.offset if operation.length is None else operation.length
        if length <= 0:
            return failed(errno.EINVAL)
        if self.conversions is not None and self.conversions.of(inode) is not None:
            return self.conversions.punch_hole(inode, operation.offset, length)
        size = PAGE_SIZE << inode.order
        if inode.kind == "guest_memfd" and (operation.offset % size or length % size):
            return failed(errno.EINVAL)
        self._punch(inode, -(-operation.offset // PAGE_SIZE), (operation.offset + length) // PAGE_SIZE)
        return Result()

    def _punch(self, inode: Inode, start: int, end: int) -> None:
        if end <= start:
            return
        if self.conversions is not None and self.conversions.of(inode) is not None:
            self.conversions.punch_hole(inode, start * PAGE_SIZE, (end - start) * PAGE_SIZE)
            return
        self.erase(inode, start >> inode.order, end >> inode.order)
        for mapping in inode.mappings:
            mapping.zap(start, end)

    def _fault(self, operation: sc.Fault) -> Result:
        file = self._file(operation.file)
        pages = file.inode.pages if file else 0
        start = operation.offset // PAGE_SIZE
        count = max(0, pages - start) if operation.length is None else operation.length // PAGE_SIZE
        if operation.by == "host":
            return self._host_fault(operation, file, start, count)
        return self._guest_fault(operation, file, start, count)

    def _host_fault(self, operation: sc.Fault, file: OpenFile | None, start: int, count: int) -> Result:
        """virt/kvm/guest_memfd.c: kvm_gmem_fault_user_mapping. Pages that raise a signal are counted as bad."""
        if file is not None and self.conversions is not None and self.conversions.of(file.inode) is not None:
            return self.conversions.host_fault(operation, self.task(operation), file, start, count)
        inside = 0
        if file is not None and file.mapping is not None and not file.inode.private:
            inside = max(0, min(count, file.inode.pages - start))
        first = -1
        if inside < count:
            order = self._order(operation, count)
            first = start + int(order[order >= inside][0])
        if inside:
            assert file is not None and file.mapping is not None
            if not self.touch(self.task(operation), file.inode, start, start + inside, operation):
                return failed(errno.ENOMEM, bad=count, first=start)
            file.mapping.map(start, start + inside)
        return Result(inside, 0, {"bad": count - inside, "first": first})

    def _guest_fault(self, operation: sc.Fault, file: OpenFile | None, start: int, count: int) -> Result:
        """KVM_RUN or KVM_PRE_FAULT_MEMORY: the calling thread's CPU, policy and rotation count."""
        if file is None or file.descriptor is None:
            return failed(errno.EBADF)
        inode = file.inode
        if not self.vcpu_open:
            self.vcpu_open = True
            self._descriptor()  # KVM_CREATE_VCPU returns one too
        inside = max(0, min(count, inode.pages - start))
        conversions = self.conversions if self.conversions is not None and self.conversions.of(inode) else None
        if inode.kind == "guest_memfd":
            reachable = not inode.private or self.scenario.guest.confidential != "none" or conversions is not None
        else:
            reachable = file.mapping is not None
        if not reachable:
            return failed(errno.EFAULT, **({"left": count} if operation.by == "prefault" else {"done": 0}))
        if inside and not self.touch(self.task(operation), inode, start, start + inside, operation):
            return failed(errno.ENOMEM)
        if conversions is not None:
            error = conversions.guest_fault(inode, start, start + inside)
            if error is not None:
                return error
        if inode.kind == "memfd" and file.mapping is not None:
            file.mapping.map(start, start + inside)
        if operation.by == "prefault":
            # kvm_vcpu_pre_fault_memory: partial progress is success, with what is left.
            return Result(0, 0, {"left": count - inside}) if inside or not count else failed(errno.ENOENT, left=count)
        return Result(0, 0, {"done": inside, "exit": KVM_EXIT_HLT if inside == count else KVM_EXIT_MMIO})

    def _first_touch(self, operation: sc.FirstTouch) -> Result:
        """Generator: vCPUs take turns (shares one after another are expanded into faults before the run)."""
        file = self._file(operation.file)
        if file is None or file.descriptor is None:
            return failed(errno.EBADF)
        inode = file.inode
        start, end = self.pages(operation, inode.pages)
        first, last = start >> inode.order, min(-(-end >> inode.order), inode.pages >> inode.order)

        def turns() -> Turns:
            tasks = np.array([self.tasks[name].index for name in self.vcpus])
            chunks = in_turns if not operation.shared else shared_turns
            for folios, turn_of in chunks(first, last, len(tasks), operation.turn):
                yield folios, tasks[turn_of]

        complete = self.touch_in_turns(inode, first, last, turns)
        if operation.by == "host" and file.mapping is not None:
            file.mapping.map(start, end)
        return self._allocated(complete)

    def _on_guest_memfd(self, operation: Any, *, closed: bool = False) -> tuple[Conversions, Inode] | None:
        """What the operations of in-place conversion need: an open guest_memfd."""
        inode = None if self.conversions is None else self.conversions.inode_of(operation, closed=closed)
        return None if inode is None or self.conversions is None else (self.conversions, inode)

    def _convert(self, operation: sc.Convert) -> Result:
        """Proposed in-place conversion of a range; not in 7.3."""
        found = self._on_guest_memfd(operation)
        return failed(errno.EBADF) if found is None else found[0].convert(operation, found[1])

    def _pin(self, operation: sc.Pin) -> Result:
        """mm/gup.c: pin_user_pages through the host mapping, or a passing reference on any folio."""
        found = self._on_guest_memfd(operation)
        return failed(errno.EBADF) if found is None else found[0].pin(operation, self.task(operation), found[1])

    def _unpin(self, operation: sc.Unpin) -> Result:
        """mm/gup.c: unpin_user_pages; pins outlive the file."""
        found = self._on_guest_memfd(operation, closed=True)
        return failed(errno.EBADF) if found is None else found[0].unpin(operation, found[1])

    def _iommu_map(self, operation: sc.IommuMap) -> Result:
        found = self._on_guest_memfd(operation)
        return failed(errno.EBADF) if found is None else self.devices.map(operation, *found)

    def _iommu_unmap(self, operation: sc.IommuUnmap) -> Result:
        found = self._on_guest_memfd(operation, closed=True)
        return failed(errno.EBADF) if found is None else self.devices.unmap(operation, *found)

    def _kexec(self, operation: sc.Kexec) -> Result:
        """Files are taken up again under their names; all else in memory is gone with the kernel that knew it."""
        result = kexec(self, self.conversions, self.devices)
        if not result.errno:
            self._start_again()
        return result

    def _start_again(self) -> None:
        """New processes: no task policy, no page tables; tmpfs and other memory use are gone, weights as at boot."""
        self._unhog(sc.Unhog())
        self.weights = self.boot_weights.copy()
        self.mems_allowed, self.cpusets_enabled = self.n_memory, False
        for task in self.tasks.values():
            task.policy = None
            self.rotations[task.index] = (self.nodes - 1, 0)
        kept = {id(file.inode) for file in self.files.values() if file.descriptor and file.inode.kind == "guest_memfd"}
        for inode in {id(file.inode): file.inode for file in self.files.values()}.values():
            inode.mappings = []
            if id(inode) not in kept:
                self._free_inode(inode)
        for name, file in list(self.files.items()):
            if id(file.inode) not in kept or file.descriptor is None:
                self.descriptors.discard(self.files.pop(name).descriptor or 0)
            elif file.mapping is not None:
                file.mapping = Mapping(file.inode.pages)
                file.inode.mappings.append(file.mapping)

    def _hwpoison(self, operation: sc.Hwpoison) -> Result:
        """mm/memory-failure.c; virt/kvm/guest_memfd.c: kvm_gmem_error_folio."""
        found = self._on_guest_memfd(operation)
        return failed(errno.EBADF) if found is None else found[0].hwpoison(operation, found[1])

    def _madvise(self, operation: sc.Madvise) -> Result:
        """mm/madvise.c for the advice that reaches the file's pages; other advice only marks the VMA."""
        file = self._file(operation.file)
        acts = {MADV_DONTNEED, MADV_REMOVE, MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_DONTNEED_LOCKED}
        if operation.offset % PAGE_SIZE or operation.advice not in acts | _MADV_MARKS_ONLY:
            return failed(errno.EINVAL)
        start, end = self.pages(operation, file.inode.pages if file else 0)
        if start == end:
            return Result()
        if file is None or file.mapping is None or start >= file.mapping.pages:
            return failed(errno.ENOMEM)
        inside = min(end, file.mapping.pages)
        if operation.advice in (MADV_DONTNEED, MADV_DONTNEED_LOCKED):
            file.mapping.zap(start, inside)
        elif operation.advice == MADV_REMOVE:
            self._punch(file.inode, start, inside)
        elif operation.advice in (MADV_POPULATE_READ, MADV_POPULATE_WRITE):
            if file.inode.private:
                return failed(errno.EFAULT)
            if not self.touch(self.task(operation), file.inode, start, inside):
                return failed(errno.ENOMEM)
            file.mapping.map(start, inside)
        return Result() if inside == end else failed(errno.ENOMEM)

    def _move_pages(self, operation: sc.MovePages) -> Result:
        return Result(*migration.move_pages(self, operation))

    def _migrate_pages(self, operation: sc.MigratePages) -> Result:
        return Result(*migration.migrate_pages(self, operation))

    def _hog(self, operation: sc.Hog) -> Result:
        """Anonymous memory of another process, preferred on (or bound to) one node."""
        node = self.index_of_node[operation.node]
        zones = [zone for zone in self.zonelists["memfd"][node] if zone >= 0 and self.zone_node[zone] == node]
        unit = int(self.zone_page_size[zones[0]]) if zones else PAGE_SIZE
        if operation.leave_free is not None:
            wanted = int(self.free[zones].sum()) - operation.leave_free // unit
        else:
            wanted = (operation.size or 0) // unit
        mark = self.watermarks[0 if operation.bind else 1] + self.reserve
        taken = np.zeros(len(self.free), np.int64)
        for zone in zones:
            taken[zone] = max(0, min(wanted - int(taken.sum()), int(self.free[zone] - mark[zone])))
        self.free -= taken
        self.hogs.append((node, taken))
        return Result(0, 0, {"pages": int(taken.sum())})

    def _unhog(self, operation: sc.Unhog) -> Result:
        for _, taken in self.hogs:
            self.free += taken
        self.hogs.clear()
        return Result()

    def _zones(self, operation: sc.Zones) -> Result:
        """Read the counters, or take those of a real kernel over (its background use is not in the scenario)."""
        if operation.observed and self.free_pfns is not None:
            raise WorkbenchError("zones.observed: cannot be taken over together with pfns: true or kexec")
        for label, state in (operation.observed or {}).items():
            if label in self.zone_labels:
                zone = self.zone_labels.index(label)
                self.free[zone] = state.free
                self.watermarks[:, zone] = (state.min, state.low, state.high)
        return Result(0, 0, {"free": dict(zip(self.zone_labels, self.free.tolist(), strict=True))})

    def _observe(self, operation: sc.Observe) -> Result:
        file = self._file(operation.file)
        if file is None or file.descriptor is None:
            return failed(errno.EBADF)
        return Result()

    def _access(self, operation: sc.Access) -> Result:
        """Changes nothing; what the vCPUs find at this moment is for the cost model, which the engine does not know."""
        file = self._file(operation.file)
        if file is None or file.descriptor is None:
            return failed(errno.EBADF)
        return Result()


def _reported(policy: mp.Mempolicy | None) -> dict[str, Any]:
    if policy is None:
        return {"mode": mp.DEFAULT, "nodes": ""}
    return {"mode": policy.mode_word, "nodes": mp.format_nodes(policy.reported_nodes)}
