qemu-system-x86_64 -accel kvm -m 2G -smp 2 -machine q35,memory-backend=mem -object memory-backend-ram,id=mem,size=2G,host-nodes=0-1,policy=interleave,prealloc=on
