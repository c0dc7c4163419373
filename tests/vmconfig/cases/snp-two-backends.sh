#!/bin/sh
# an SNP guest with two virtual nodes, each bound to a node of the host
numactl --cpunodebind=0,1 qemu-system-x86_64 \
  -enable-kvm -cpu EPYC-v4 -machine q35,confidential-guest-support=sev0 \
  -m 8G -smp 8,sockets=2,cores=4,threads=1 \
  -object sev-snp-guest,id=sev0,policy=0x30000,cbitpos=51,reduced-phys-bits=1 \
  -object memory-backend-memfd,id=ram0,size=4G,share=on,host-nodes=0,policy=bind \
  -object memory-backend-memfd,id=ram1,size=4G,share=on,host-nodes=1,policy=bind,prealloc=on \
  -numa node,nodeid=0,cpus=0-3,memdev=ram0 -numa node,nodeid=1,cpus=4-7,memdev=ram1 \
  -drive file=disk.qcow2,if=virtio -netdev user,id=n0 -device virtio-net-pci,netdev=n0 \
  -strange-option 7 -nographic
