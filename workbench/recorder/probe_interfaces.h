// SPDX-License-Identifier: Apache-2.0
/*
 * What the probe calls that the headers of a C library may be too old to name. Numbers and layouts are those of the
 * kernel's interface; whether a kernel has a call is asked of it, never assumed.
 */
#ifndef PROBE_INTERFACES_H
#define PROBE_INTERFACES_H

#include <linux/kvm.h>
#include <stdint.h>

#ifndef KVM_CREATE_GUEST_MEMFD
struct kvm_create_guest_memfd {
	uint64_t size, flags, reserved[6];
};
#define KVM_CREATE_GUEST_MEMFD _IOWR(KVMIO, 0xd4, struct kvm_create_guest_memfd)
#endif
#ifndef KVM_SET_USER_MEMORY_REGION2
struct kvm_userspace_memory_region2 {
	uint32_t slot, flags;
	uint64_t guest_phys_addr, memory_size, userspace_addr, guest_memfd_offset;
	uint32_t guest_memfd, pad1;
	uint64_t pad2[14];
};
#define KVM_SET_USER_MEMORY_REGION2 _IOW(KVMIO, 0x49, struct kvm_userspace_memory_region2)
#endif
#ifndef KVM_PRE_FAULT_MEMORY
struct kvm_pre_fault_memory {
	uint64_t gpa, size, flags, padding[5];
};
#define KVM_PRE_FAULT_MEMORY _IOWR(KVMIO, 0xd5, struct kvm_pre_fault_memory)
#endif
#ifndef KVM_SET_MEMORY_ATTRIBUTES
struct kvm_memory_attributes {
	uint64_t address, size, attributes, flags;
};
#define KVM_SET_MEMORY_ATTRIBUTES _IOW(KVMIO, 0xd2, struct kvm_memory_attributes)
#endif

/* In-place conversion, merged for 7.4: on the descriptor of the guest_memfd instead of the virtual machine. */
struct attributes_of_file {
	uint64_t offset, size, attributes, flags, error_offset, reserved[11];
};
#define SET_ATTRIBUTES_OF_FILE _IOWR(KVMIO, 0xd2, struct attributes_of_file)

/*
 * Huge pages of guest_memfd, in no released kernel: a flag, and the order of the pages behind the flags, where released
 * kernels have a reserved field (public trees AMDESE/linux-kvm and intel/tdx, 2026). RFC v2 of May 2025 has the same flag with
 * the logarithm of the size in the flags' highest bits, and its bits 0 and 1 mean other things: it is asked by number.
 */
struct create_with_order {
	uint64_t size, flags;
	uint8_t page_order, reserved8;
	uint16_t reserved16;
	uint32_t reserved32;
	uint64_t reserved[5];
};
_Static_assert(sizeof(struct create_with_order) == sizeof(struct kvm_create_guest_memfd), "one request, one size");
#define FLAG_HUGETLB (1L << 2)

/* Live update (include/uapi/linux/liveupdate.h): sessions hold files that the next kernel takes up. */
struct session_of_name {
	uint32_t size;
	int32_t fd;
	char name[64];
};
struct file_of_session {
	uint32_t size;
	int32_t fd;
	uint64_t token;
};
struct end_of_session {
	uint32_t size, reserved;
};
#define CREATE_SESSION _IO(0xba, 0x00)
#define RETRIEVE_SESSION _IO(0xba, 0x01)
#define SESSION_PRESERVE _IO(0xba, 0x40)
#define SESSION_RETRIEVE _IO(0xba, 0x41)
#define SESSION_FINISH _IO(0xba, 0x42)

#ifndef MFD_HUGE_SHIFT
#define MFD_HUGE_SHIFT 26
#endif

#define MEMSLOT_GUEST_MEMFD (1u << 2)
#define ATTRIBUTE_PRIVATE (1L << 3)
#define EXIT_MEMORY_FAULT 39
#define CAP_MEMORY_ATTRIBUTES 233
#define CAP_GUEST_MEMFD 234
#define CAP_VM_TYPES 235
#define CAP_PRE_FAULT_MEMORY 236
#define CAP_GUEST_MEMFD_FLAGS 244
/*
 * KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES: 246, 248, 249 or 250 in one posting or another; 7.3 gave those to other things, so
 * that the merged number is a later one. It is looked for in this range, where a file converts in place at all.
 */
#define CAP_OF_FILE_ATTRIBUTES (-1L)
#define CAP_OF_FILE_FIRST 246
#define CAP_OF_FILE_LAST 263

#define CALL_KEXEC_FILE_LOAD 320
#define CALL_MEMBARRIER 324
#define CALL_PIDFD_OPEN 434
#define CALL_PIDFD_GETFD 438
#define CALL_IO_URING_SETUP 425
#define CALL_IO_URING_REGISTER 427
#define CALL_HOME_NODE 450
#define CALL_CACHESTAT 451

#endif
