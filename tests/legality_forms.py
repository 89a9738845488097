"""Forms of PTX instructions as templates, for the tests of legality.

A template is an instruction; `(a|b)` expands to each alternative, `{t}` to each value of the variable `t` given after
the bar. `$f32` is a register of that type, `$t` one of the variable's type, `$t*2` one of twice its width, `$t#4` a
vector of four; `[G]`, `[S]` and `[A]` are a global, a shared and any address, `#m` a member mask.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator

FORMS = r"""
# integer arithmetic
(add|sub|mul.lo|mul.hi|div|rem|min|max).{t} $t, $t, $t | t=u16 s16 u32 s32 u64 s64
(add|sub).sat.s32 $s32, $s32, $s32
(add|min|max).{t} $b32, $b32, $b32 | t=u16x2 s16x2
add.sat.{t} $b32, $b32, $b32 | t=u32 u16x2 s16x2
(min|max).relu.{t} $t, $t, $t | t=s32
(min|max).relu.s16x2 $b32, $b32, $b32
(add|sub)(.cc|).{t} $t, $t, $t | t=u32 s32 u64 s64
(addc|subc)(.cc|).{t} $t, $t, $t | t=u32 s32 u64 s64
(mad|madc).(lo|hi)(.cc|).{t} $t, $t, $t, $t | t=u32 s32 u64 s64
mad.(lo|hi).{t} $t, $t, $t, $t | t=u16 s16
mad.hi.sat.s32 $s32, $s32, $s32, $s32
mul.wide.{t} $t*2, $t, $t | t=u16 s16 u32 s32
mad.wide.{t} $t*2, $t, $t, $t*2 | t=u16 s16 u32 s32
mul24.(lo|hi).{t} $t, $t, $t | t=u32 s32
mad24.(lo|hi).{t} $t, $t, $t, $t | t=u32 s32
mad24.hi.sat.s32 $s32, $s32, $s32, $s32
sad.{t} $t, $t, $t, $t | t=u16 s16 u32 s32 u64 s64
(abs|neg).{t} $t, $t | t=s16 s32 s64
(popc|clz).{t} $u32, $t | t=b32 b64
bfind(.shiftamt|).{t} $u32, $t | t=u32 s32 u64 s64
fns.b32 $b32, $b32, $b32, $s32
brev.{t} $t, $t | t=b32 b64
bfe.{t} $t, $t, $u32, $u32 | t=u32 s32 u64 s64
bfi.{t} $t, $t, $t, $u32, $u32 | t=b32 b64
bmsk.(clamp|wrap).b32 $b32, $b32, $b32
szext.(clamp|wrap).{t} $t, $t, $u32 | t=u32 s32
dp4a.(u32|s32).(u32|s32) $b32, $b32, $b32, $b32
dp2a.(lo|hi).(u32|s32).(u32|s32) $b32, $b32, $b32, $b32
# video: selectors follow the registers
(vadd|vsub|vabsdiff|vmin|vmax).(u32|s32).(u32|s32).(u32|s32)(|.sat) $u32, $b32, $s32
(vadd|vmin).s32.u32.s32(|.sat).(add|min|max) $u32, $u32.b0, $u32.h1, $u32
(vsub|vmax).u32.s32.u32(|.sat) $u32.(b0|b3|h1), $u32.(b2|h0), $u32.(b1|b3), $u32
vadd.s32.u32.s32 $u32, $u32, (5|-3|1.5|$f32|$b16)
vadd.s32.u32.s32 (_|$b64), $u32, $u32
vadd.s32.u32.s32(|.add) $u32(|.h0), $u32, $u32(|, $u32|, 9|, $u32.b0)
vadd.s32.u32.s32 $u32.(h10|b4|h2), $u32, $u32, $u32
vadd.s32.u32.s32 $u32, $u32.(h10|b4|h2|b10), $u32
vadd.(b32|s16).u32.s32 $u32, $u32, $u32
(vshl|vshr).u32.s32.(u32|s32)(|.sat)(|.clamp|.wrap) $u32, $u32.b0, $u32.h1
(vshl|vshr).u32.s32.u32.clamp(|.add|.max) $u32(|.b2), $u32, $u32, $u32
vset.(u32|s32).(u32|s32).(eq|ne|lt|le|gt|ge) $u32, $u32.b0, $u32.h1
vset.s32.u32.lt(|.sat|.add|.min|.max) $u32(|.h1), $u32, $u32, $u32
vset.s32.u32.ltu $u32, $u32, $u32
vmad.(u32|s32).(u32|s32).(u32|s32)(|.po)(|.sat)(|.shr7|.shr15) $u32, $u32.b0, $u32.h1, $u32
vmad.s32.s32.u32(|.po) $u32, (|-)$u32, (|-)$u32.h0, (|-)$u32
vmad.s32.s32.u32 $u32(|.b0), $u32, 7, (-7|$u32.b0)
vmad.s32.s32.u32 $u32, $u32, $u32
(vadd|vsub|vavrg|vabsdiff|vmin|vmax)(2|4).(u32|s32).u32.s32(|.sat|.add) $u32, $u32, $u32, $u32
vadd(2|4).s32.u32.s32.(sat.add|min) $u32, $u32, $u32, $u32
vadd(2|4).s32.u32.s32 $u32, $u32, ($u32|5|$f32|$u32, 5|$u32, $b64)
vadd2.s32.u32.s32 $u32.(h0|h1|h10|h01|b0|h2), $u32, $u32, $u32
vsub2.s32.u32.s32 $u32, $u32.(h00|h01|h32|h31|h44|h0|b10), $u32.h20, $u32
vset2.s32.u32.(eq|ge)(|.add|.sat|.min) $u32.h1, $u32.h01, $u32.h33, $u32
vadd4.s32.u32.s32 $u32.(b0|b2|b10|b31|b32|b210|b320|b3210|b01|b00|b4|h0|b0123), $u32, $u32, $u32
vmin4.s32.u32.s32 $u32, $u32.(b0000|b7654|b0123|b321|b8000|h10), $u32.b2222, $u32
vset4.s32.u32.(eq|ge)(|.add|.max) $u32.b31, $u32.b7041, $u32.b3333, $u32
# logic and shifts
(and|or|xor).{t} $t, $t, $t | t=pred b16 b32 b64
(not|cnot).{t} $t, $t | t=b16 b32 b64
not.pred $pred, $pred
(and|or|xor).{t} $t, $t, 5 | t=b16 b32 b64
lop3.b32 $b32, $b32, $b32, $b32, 0x96
lop3.(or|and).b32 $b32|$pred, $b32, $b32, $b32, 0x96, $pred
lop3.(or|and).b32 _|$pred, $b32, $b32, $b32, 0x96, !$pred
shl.{t} $t, $t, $u32 | t=b16 b32 b64
shr.{t} $t, $t, $u32 | t=b16 b32 b64 u16 u32 u64 s16 s32 s64
shf.(l|r).(clamp|wrap).b32 $b32, $b32, $b32, $u32
prmt.b32(|.f4e|.b4e|.rc8|.ecl|.ecr|.rc16) $b32, $b32, $b32, $b32
# comparison and selection
setp.(eq|ne|lt|le|gt|ge).{t} $pred, $t, $t | t=u16 s16 u32 s32 u64 s64
setp.(eq|ne).{t} $pred, $t, $t | t=b16 b32 b64
setp.(lo|ls|hi|hs).{t} $pred, $t, $t | t=u16 u32 u64
setp.(lt|hi).(and|or|xor).u32 $pred|$pred, $u32, $u32, !$pred
setp.(eq|ne|lt|le|gt|ge|equ|neu|ltu|leu|gtu|geu|num|nan).{t} $pred, $t, $t | t=f32 f64 f16 bf16
setp.(lt|neu).ftz.{t} $pred, $t, $t | t=f32 f16
setp.lt.(and|or|xor).f32 $pred|$pred, $f32, $f32, $pred
setp.(eq|ltu|nan)(.ftz|).f16x2 $pred|$pred, $b32, $b32
setp.(eq|ltu|nan).bf16x2 $pred|$pred, $b32, $b32
setp.(eq|ltu).and.f16x2 $pred|$pred, $b32, $b32, $pred
set.(eq|lt|hs).(u32|s32).{t} $b32, $t, $t | t=u16 u32 u64
set.(eq|ltu)(.ftz|).(u32|s32|f32).f32 $b32, $f32, $f32
set.(eq|gt).f32.{t} $f32, $t, $t | t=s32 f64
set.lt.xor.u32.s32 $u32, $s32, $s32, !$pred
set.(eq|ltu)(.ftz|).f16.{t} $b16, $t, $t | t=f16
set.(eq|ltu).bf16.{t} $b16, $t, $t | t=bf16
set.(eq|lt).(u32|s32).f16 $b32, $b16, $b16
set.(eq|ltu)(.ftz|).f16x2.f16x2 $b32, $b32, $b32
set.(eq|ltu).bf16x2.bf16x2 $b32, $b32, $b32
set.(eq|lt).bf16.u32 $b16, $u32, $u32
selp.{t} $t, $t, $t, $pred | t=b16 b32 b64 u16 u32 u64 s16 s32 s64 f32 f64
slct.{t}.s32 $t, $t, $t, $s32 | t=b16 b32 b64 u16 u32 u64 s16 s32 s64 f32 f64
slct(.ftz|).{t}.f32 $t, $t, $t, $f32 | t=b16 b32 b64 u16 u32 u64 s16 s32 s64 f32 f64
# moves
mov.{t} $t, $t | t=pred b16 u16 s16 b32 u32 s32 b64 u64 s64 f32 f64 b128
mov.b32 $b32, {$b16, $b16}
mov.b32 {$b16, $b16}, $b32
mov.b64 $b64, {$b32, $b32}
mov.b64 {$b32, _}, $b64
mov.b64 $b64, {$b16, $b16, $b16, $b16}
mov.b64 {$b16, $b16, $b16, $b16}, $b64
mov.b16 $b16, {$b8, $b8}
mov.b16 {$b8, $b8}, $b16
mov.b32 $b32, {$b8, $b8, $b8, $b8}
mov.b32 {$b8, $b8, $b8, $b8}, $b32
mov.b128 $b128, {$b64, $b64}
mov.b128 {$b64, $b64}, $b128
mov.u32 $u32, (%tid.x|%ntid.y|%ctaid.z|%nctaid.x|%laneid|%warpid|%nwarpid|%smid|%nsmid|%lanemask_lt|%clock\
|%clock_hi)
mov.u32 $u32, (%dynamic_smem_size|%total_smem_size|%globaltimer_lo|%globaltimer_hi|%envreg0|%pm0)
mov.u64 $u64, (%clock64|%globaltimer|%gridid|%pm0_64)
mov.u32 $u32, (%clusterid.x|%nclusterid.y|%cluster_ctaid.x|%cluster_nctaid.z|%cluster_ctarank|%cluster_nctarank)
mov.u32 $u32, (%aggr_smem_size|%reserved_smem_offset_begin|%reserved_smem_offset_cap)
mov.pred $pred, %is_explicit_cluster
mov.u64 $u64, smem
mov.u32 $u32, WARP_SZ
# float
(add|sub|mul)(|.rn|.rz|.rm|.rp)(|.ftz)(|.sat).f32 $f32, $f32, $f32
(add|sub|mul)(|.rn|.rz|.rm|.rp).f64 $f64, $f64, $f64
(add|sub|mul)(|.rn)(|.ftz)(|.sat).{t} $t, $t, $t | t=f16 f16x2
(add|sub|mul)(|.rn).{t} $t, $t, $t | t=bf16 bf16x2
(add|sub|mul)(|.rn|.rz|.rm|.rp)(|.ftz).f32x2 $b64, $b64, $b64
(add|sub)(|.rn|.rz|.rm|.rp)(|.sat).f32.{t} $f32, $t, $f32 | t=f16 bf16
fma.(rn|rz|rm|rp)(|.sat).f32.{t} $f32, $t, $t, $f32 | t=f16 bf16
fma.(rn|rz|rm|rp)(|.ftz)(|.sat).f32 $f32, $f32, $f32, $f32
fma.(rn|rz|rm|rp)(|.ftz).f32x2 $b64, $b64, $b64, $b64
fma.(rn|rz|rm|rp).f64 $f64, $f64, $f64, $f64
fma.rn(|.ftz)(|.sat|.relu).{t} $t, $t, $t, $t | t=f16 f16x2
fma.rn(|.relu).{t} $t, $t, $t, $t | t=bf16 bf16x2
fma.rn.oob(|.relu).{t} $t, $t, $t, $t | t=f16 f16x2 bf16 bf16x2
mad.(rn|rz|rm|rp)(|.ftz)(|.sat).f32 $f32, $f32, $f32, $f32
mad.(rn|rz|rm|rp).f64 $f64, $f64, $f64, $f64
div.(approx|full|rn|rz|rm|rp)(|.ftz).f32 $f32, $f32, $f32
div.(rn|rz|rm|rp).f64 $f64, $f64, $f64
(rcp|sqrt).(approx|rn|rz|rm|rp)(|.ftz).f32 $f32, $f32
(rcp|sqrt).(rn|rz|rm|rp).f64 $f64, $f64
rcp.approx.ftz.f64 $f64, $f64
rsqrt.approx(|.ftz).f32 $f32, $f32
rsqrt.approx(|.ftz).f64 $f64, $f64
(sin|cos|lg2|ex2).approx(|.ftz).f32 $f32, $f32
tanh.approx.{t} $t, $t | t=f32 f16 f16x2 bf16 bf16x2
ex2.approx.{t} $t, $t | t=f16 f16x2
ex2.approx.ftz.{t} $t, $t | t=bf16 bf16x2
(abs|neg)(|.ftz).{t} $t, $t | t=f32 f16 f16x2
(abs|neg).{t} $t, $t | t=f64 bf16 bf16x2
(min|max)(|.ftz)(|.NaN)(|.xorsign.abs).f32 $f32, $f32, $f32
(min|max)(|.ftz)(|.NaN)(|.abs).f32 $f32, $f32, $f32, $f32
(min|max).f64 $f64, $f64, $f64
(min|max)(|.ftz)(|.NaN)(|.xorsign.abs).{t} $t, $t, $t | t=f16 f16x2
(min|max)(|.NaN)(|.xorsign.abs).{t} $t, $t, $t | t=bf16 bf16x2
copysign.{t} $t, $t, $t | t=f32 f64
testp.(finite|infinite|number|notanumber|normal|subnormal).{t} $pred, $t | t=f32 f64
# conversions
cvt.{d}.{s} $d, $s | d=u8 u16 u32 u64 s8 s16 s32 s64 ; s=u8 u16 u32 u64 s8 s16 s32 s64
cvt.sat.{d}.{s} $d, $s | d=u8 s8 u16 s16 ; s=s32 u32 s64
cvt.sat.{d}.{s} $d, $s | d=u32 s32 ; s=s64 u64
cvt.sat.u32.s32 $u32, $s32
cvt.sat.u64.s64 $u64, $s64
cvt.(rni|rzi|rmi|rpi)(|.ftz)(|.sat).{d}.f32 $d, $f32 | d=u8 s8 u16 s16 u32 s32 u64 s64
cvt.(rni|rzi|rmi|rpi).{d}.{s} $d, $s | d=u8 s8 u16 s16 u32 s32 u64 s64 ; s=f64 f16 bf16
cvt.(rn|rz|rm|rp).{d}.{s} $d, $s | d=f32 f64 f16 bf16 ; s=u8 s8 u16 s16 u32 s32 u64 s64
cvt.(rn|rz|rm|rp)(|.ftz)(|.sat).f32.f64 $f32, $f64
cvt(|.ftz)(|.sat).f64.f32 $f64, $f32
cvt(|.ftz)(|.sat).f32.{s} $f32, $s | s=f16
cvt.{d}.{s} $d, $s | d=f32 f64 ; s=f16 bf16
cvt(|.sat).f32.f32 $f32, $f32
cvt.(rni|rzi|rmi|rpi)(|.sat).{t}.{t} $t, $t | t=f32 f64 f16
cvt.(rni|rzi|rmi|rpi).bf16.bf16 $bf16, $bf16
cvt.(rn|rz|rm|rp)(|.ftz)(|.sat).f16.f32 $f16, $f32
cvt.(rn|rz|rm|rp).bf16.f32 $bf16, $f32
cvt.(rn|rz).relu.{d}.f32 $d, $f32 | d=f16 bf16
cvt.(rn|rz)(|.relu).satfinite.{d}.f32 $d, $f32 | d=f16 bf16
cvt.(rn|rz|rm|rp).{d}.f64 $d, $f64 | d=f16 bf16
cvt.rn.{d}.{s} $d, $s | d=f16 ; s=bf16
cvt.rn.{d}.{s} $d, $s | d=bf16 ; s=f16
cvt.(rn|rz)(|.relu)(|.satfinite).(f16x2|bf16x2).f32 $b32, $f32, $f32
cvt.rs(|.relu)(|.satfinite).(f16x2|bf16x2).f32 $b32, $f32, $f32, $b32
cvt.rna(|.satfinite).tf32.f32 $b32, $f32
cvt.(rn|rz)(|.relu)(|.satfinite).tf32.f32 $b32, $f32
cvt.rn.satfinite(|.relu).(e4m3x2|e5m2x2|e2m3x2|e3m2x2).f32 $b16, $f32, $f32
cvt.rn.satfinite(|.relu).(e4m3x2|e5m2x2|e2m3x2|e3m2x2).(f16x2|bf16x2) $b16, $b32
cvt.rn(|.relu).f16x2.(e4m3x2|e5m2x2|e2m3x2|e3m2x2) $b32, $b16
cvt.rn.satfinite(|.relu).e2m1x2.f32 $b8, $f32, $f32
cvt.rn.satfinite(|.relu).e2m1x2.(f16x2|bf16x2) $b8, $b32
cvt.rn(|.relu).f16x2.e2m1x2 $b32, $b8
cvt.rn(|.satfinite)(|.relu).bf16x2.(e4m3x2|e5m2x2|e2m3x2|e3m2x2|s2f6x2) $b32, $b16
cvt.rn(|.satfinite)(|.relu).scaled::n2::ue8m0.bf16x2.(e4m3x2|e5m2x2|e2m3x2|e3m2x2|s2f6x2) $b32, $b16, $b16
cvt.rn(|.satfinite)(|.relu).bf16x2.e2m1x2 $b32, $b8
cvt.rn(|.satfinite)(|.relu).scaled::n2::ue8m0.bf16x2.e2m1x2 $b32, $b8, $b16
cvt.rn.satfinite(|.relu).s2f6x2.f32 $b16, $f32, $f32
cvt.rn.satfinite(|.relu).s2f6x2.bf16x2 $b16, $b32
cvt.rn.satfinite(|.relu).scaled::n2::ue8m0.s2f6x2.f32 $b16, $f32, $f32, $b16
cvt.rn.satfinite(|.relu).scaled::n2::ue8m0.s2f6x2.bf16x2 $b16, $b32, $b16
cvt.(rz|rp)(|.satfinite).ue8m0x2.f32 $b16, $f32, $f32
cvt.(rz|rp)(|.satfinite).ue8m0x2.bf16x2 $b16, $b32
cvt.rn.bf16x2.ue8m0x2 $b32, $b16
cvt.rs(|.relu).satfinite.(e4m3x4|e5m2x4|e2m3x4|e3m2x4).f32 $b32, $f32#4, $b32
cvt.rs(|.relu).satfinite.e2m1x4.f32 $b16, $f32#4, $b32
cvt.pack.sat.(u16|s16).s32 $b32, $s32, $s32
cvt.pack.sat.(u8|s8|u4|s4|u2|s2).s32.b32 $b32, $s32, $s32, $b32
# exchange within a warp
shfl.sync.(up|down|bfly|idx).b32 $b32, $b32, 1, 31, -1
shfl.sync.idx.b32 $b32|$pred, $b32, $b32, $b32, $b32
vote.sync.(all|any|uni).pred $pred, $pred, -1
vote.sync.ballot.b32 $b32, !$pred, -1
match.any.sync.{t} $b32, $t, -1 | t=b32 b64
match.all.sync.{t} $b32|$pred, $t, -1 | t=b32 b64
activemask.b32 $b32
redux.sync.(add|min|max).{t} $t, $t, -1 | t=u32 s32
redux.sync.(and|or|xor).b32 $b32, $b32, -1
redux.sync.(min|max)(|.abs)(|.NaN).f32 $f32, $f32, -1
elect.sync $b32|$pred, -1
elect.sync _|$pred, -1
# matrix moves
ldmatrix.sync.aligned.m8n8.{w}(|.trans).shared.b16 $v, [S] | w/v=x1/b32#1 x2/b32#2 x4/b32#4
ldmatrix.sync.aligned.m16n16.{w}.trans.shared.b8 $v, [S] | w/v=x1/b32#2 x2/b32#4
ldmatrix.sync.aligned.m16n16.{w}.trans.shared.b8x16.(b6x16_p32|b4x16_p64) $v, [S] | w/v=x1/b32#2 x2/b32#4
ldmatrix.sync.aligned.m8n16.{w}.shared.b8x16.(b6x16_p32|b4x16_p64) $v, [S] | w/v=x1/b32#1 x2/b32#2 x4/b32#4
stmatrix.sync.aligned.m8n8.{w}(|.trans).shared.b16 [S], $v | w/v=x1/b32#1 x2/b32#2 x4/b32#4
stmatrix.sync.aligned.m16n8.{w}.trans.shared.b8 [S], $v | w/v=x1/b32#1 x2/b32#2 x4/b32#4
movmatrix.sync.aligned.m8n8.trans.b16 $b32, $b32
# mma
mma.sync.aligned.m8n8k4.(row|col).(row|col).f32.f16.f16.f32 $f32#8, $b32#2, $b32#2, $f32#8
mma.sync.aligned.m8n8k4.(row|col).(row|col).f16.f16.f16.f16 $b32#4, $b32#2, $b32#2, $b32#4
mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f16 $f32#8, $b32#2, $b32#2, $b32#4
mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 $f32#4, $b32#2, $b32#1, $f32#4
mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 $b32#2, $b32#2, $b32#1, $b32#2
mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 $f32#4, $b32#4, $b32#2, $f32#4
mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 $b32#2, $b32#4, $b32#2, $b32#2
mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 $f32#4, $b32#2, $b32#1, $f32#4
mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 $f32#4, $b32#4, $b32#2, $f32#4
mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 $f32#4, $b32#2, $b32#1, $f32#4
mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 $f32#4, $b32#4, $b32#2, $f32#4
mma.sync.aligned.m8n8k4.row.col(|.rn|.rz|.rm|.rp).f64.f64.f64.f64 $f64#2, $f64#1, $f64#1, $f64#2
mma.sync.aligned.m16n8k4.row.col(|.rn|.rz|.rm|.rp).f64.f64.f64.f64 $f64#4, $f64#2, $f64#1, $f64#4
mma.sync.aligned.m16n8k8.row.col(|.rn|.rz|.rm|.rp).f64.f64.f64.f64 $f64#4, $f64#4, $f64#2, $f64#4
mma.sync.aligned.m16n8k16.row.col(|.rn|.rz|.rm|.rp).f64.f64.f64.f64 $f64#4, $f64#8, $f64#4, $f64#4
mma.sync.aligned.m8n8k16.row.col(|.satfinite).s32.(s8|u8).(s8|u8).s32 $s32#2, $b32#1, $b32#1, $s32#2
mma.sync.aligned.m16n8k16.row.col(|.satfinite).s32.(s8|u8).(s8|u8).s32 $s32#4, $b32#2, $b32#1, $s32#4
mma.sync.aligned.m16n8k32.row.col(|.satfinite).s32.(s8|u8).(s8|u8).s32 $s32#4, $b32#4, $b32#2, $s32#4
mma.sync.aligned.m8n8k32.row.col(|.satfinite).s32.(s4|u4).(s4|u4).s32 $s32#2, $b32#1, $b32#1, $s32#2
mma.sync.aligned.m16n8k32.row.col(|.satfinite).s32.(s4|u4).(s4|u4).s32 $s32#4, $b32#2, $b32#1, $s32#4
mma.sync.aligned.m16n8k64.row.col(|.satfinite).s32.(s4|u4).(s4|u4).s32 $s32#4, $b32#4, $b32#2, $s32#4
mma.sync.aligned.m8n8k128.row.col.s32.b1.b1.s32.(xor|and).popc $s32#2, $b32#1, $b32#1, $s32#2
mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32.(xor|and).popc $s32#4, $b32#2, $b32#1, $s32#4
mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.(xor|and).popc $s32#4, $b32#4, $b32#2, $s32#4
mma.sync.aligned.m16n8k16.row.col.f32.(e4m3|e5m2).(e4m3|e5m2).f32 $f32#4, $b32#2, $b32#1, $f32#4
mma.sync.aligned.m16n8k16.row.col.f16.(e4m3|e5m2).(e4m3|e5m2).f16 $b32#2, $b32#2, $b32#1, $b32#2
mma.sync.aligned.m16n8k32.row.col.f32.(e4m3|e5m2).(e4m3|e5m2).f32 $f32#4, $b32#4, $b32#2, $f32#4
mma.sync.aligned.m16n8k32.row.col.f16.(e4m3|e5m2).(e4m3|e5m2).f16 $b32#2, $b32#4, $b32#2, $b32#2
mma.sync.aligned.m16n8k32.row.col.kind::f8f6f4.f32.{a}.{b}.f32 $f32#4, $b32#4, $b32#2, $f32#4\
 | a=e4m3 e5m2 e3m2 e2m3 e2m1 ; b=e4m3 e5m2 e3m2 e2m3 e2m1
mma.sync.aligned.m16n8k32.row.col.kind::f8f6f4.f16.{a}.{b}.f16 $b32#2, $b32#4, $b32#2, $b32#2\
 | a=e4m3 e2m1 ; b=e5m2 e3m2 e2m3
mma.sync.aligned.m16n8k32.row.col.kind::mxf8f6f4.block_scale(|.scale_vec::1X).f32.{a}.{b}.f32.ue8m0 $f32#4,\
 $b32#4, $b32#2, $f32#4, $b32, {0, 1}, $b32, {0, 0} | a=e4m3 e5m2 e3m2 e2m3 e2m1 ; b=e4m3 e5m2 e3m2 e2m3 e2m1
mma.sync.aligned.m16n8k64.row.col.kind::mxf4.block_scale(|.scale_vec::2X).f32.e2m1.e2m1.f32.ue8m0 $f32#4, $b32#4,\
 $b32#2, $f32#4, $b32, {0, 1}, $b32, {2, 3}
mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::2X.f32.e2m1.e2m1.f32.ue8m0 $f32#4,\
 $b32#4, $b32#2, $f32#4, $b32, {2, 1}, $b32, {0, 0}
mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue4m3 $f32#4,\
 $b32#4, $b32#2, $f32#4, $b32, {0, 1}, $b32, {0, 3}
mma.sp(|::ordered_metadata).sync.aligned.m16n8k16.row.col.f32.(f16|bf16).(f16|bf16).f32 $f32#4, $b32#2, $b32#2,\
 $f32#4, $b32, (0|3)
mma.sp(|::ordered_metadata).sync.aligned.m16n8k32.row.col.f32.(f16|bf16).(f16|bf16).f32 $f32#4, $b32#4, $b32#4,\
 $f32#4, $b32, (0|1|2|3)
mma.sp(|::ordered_metadata).sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 $b32#2, $b32#2, $b32#2, $b32#2, $b32, (1|4)
mma.sp(|::ordered_metadata).sync.aligned.m16n8k32.row.col.f16.f16.f16.f16 $b32#2, $b32#4, $b32#4, $b32#2, $b32, (1|2)
mma.sp.sync.aligned.m16n8k16.row.col.f16.f16.f16.f32 $b32#2, $b32#2, $b32#2, $f32#4, $b32, 1
mma.sp.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 $f32#4, $b32#2, $b32#2, $f32#4, (3|$b64|$f32), (0|$b32)
mma.sp(|::ordered_metadata).sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 $f32#4, $b32#2, $b32#2, $f32#4, $b32, (3|4)
mma.sp(|::ordered_metadata).sync.aligned.m16n8k16.row.col.f32.tf32.tf32.f32 $f32#4, $b32#4, $b32#4, $f32#4, $b32, (1|2)
mma.sp(|::ordered_metadata).sync.aligned.m16n8k32.row.col(|.satfinite).s32.(s8|u8).(s8|u8).s32 $s32#4, $b32#2,\
 $b32#2, $s32#4, $b32, (1|2)
mma.sp(|::ordered_metadata).sync.aligned.m16n8k64.row.col(|.satfinite).s32.(s8|u8).s8.s32 $s32#4, $b32#4, $b32#4,\
 $s32#4, $b32, (0|1)
mma.sp(|::ordered_metadata).sync.aligned.m16n8k64.row.col(|.satfinite).s32.(s4|u4).s4.s32 $s32#4, $b32#2, $b32#2,\
 $s32#4, $b32, (1|2)
mma.sp(|::ordered_metadata).sync.aligned.m16n8k128.row.col(|.satfinite).s32.(s4|u4).s4.s32 $s32#4, $b32#4, $b32#4,\
 $s32#4, $b32, (0|1)
mma.sp(|::ordered_metadata).sync.aligned.m16n8k64.row.col.f32.(e4m3|e5m2).e4m3.f32 $f32#4, $b32#4, $b32#4,\
 $f32#4, $b32, (0|1)
mma.sp(|::ordered_metadata).sync.aligned.m16n8k64.row.col.f16.(e4m3|e5m2).e4m3.f16 $b32#2, $b32#4, $b32#4,\
 $b32#2, $b32, 0
mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 $f32#4, $b32#2, $b32#2, $f32#4, $b32, 0
mma.sp(|::ordered_metadata).sync.aligned.m16n8k64.row.col.kind::f8f6f4.f32.{a}.(e4m3|e2m1|e2m3).f32 $f32#4,\
 $b32#4, $b32#4, $f32#4, $b32, 0 | a=e4m3 e5m2 e3m2 e2m1
mma.sp(|::ordered_metadata).sync.aligned.m16n8k64.row.col.kind::f8f6f4.f16.(e4m3|e2m1).(e5m2|e2m3).f16 $b32#2,\
 $b32#4, $b32#4, $b32#2, $b32, 0
mma.sp(|::ordered_metadata).sync.aligned.m16n8k64.row.col.kind::mxf8f6f4.block_scale(|.scale_vec::1X).f32.(e4m3|e2m1)\
.e3m2.f32.ue8m0 $f32#4, $b32#4, $b32#4, $f32#4, $b32, (0|1), $b32, {2, 1}, $b32, {2, 3}
mma.sp(|::ordered_metadata).sync.aligned.m16n8k128.row.col.kind::mxf4.block_scale(|.scale_vec::2X).f32.e2m1.e2m1.f32\
.ue8m0 $f32#4, $b32#4, $b32#4, $f32#4, $b32, 0, $b32, {2, 1}, $b32, {2, 3}
mma.sp(|::ordered_metadata).sync.aligned.m16n8k128.row.col.kind::mxf4nvf4.block_scale(|.scale_vec::2X|.scale_vec::4X)\
.f32.e2m1.e2m1.f32.(ue8m0|ue4m3) $f32#4, $b32#4, $b32#4, $f32#4, $b32, 0, $b32, {0, 1}, $b32, {0, 3}
mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue8m0 $f32#4,\
 $b32#4, $b32#2, $f32#4, $b32, {0, 1}, $b32, {0, 1}
# wmma
wmma.load.(a|b).sync.aligned.row.(m16n16k16|m8n32k16|m32n8k16)(|.global|.shared).f16 $b32#8, [A], $u32
wmma.load.a.sync.aligned.col.m16n16k16.f16 $b32#8, [A]
wmma.load.a.sync.aligned.row.m16n16k16.{w} $v, [A], 16 | w/v=bf16/b32#4 s8/b32#2 u8/b32#2
wmma.load.a.sync.aligned.row.m8n32k16.{w} $v, [A], 16 | w/v=bf16/b32#2 s8/b32#1
wmma.load.a.sync.aligned.row.m16n16k8.tf32 $b32#4, [A], 16
wmma.load.a.sync.aligned.row.m8n8k4.f64 $f64#1, [A], 4
wmma.load.a.sync.aligned.row.m8n8k32.(s4|u4) $b32#1, [A], 32
wmma.load.b.sync.aligned.col.m8n8k128.b1 $b32#1, [A], 128
wmma.load.c.sync.aligned.row.m16n16k16.{w} $v, [A], 16 | w/v=f16/b32#4 f32/f32#8 s32/s32#8
wmma.store.d.sync.aligned.(row|col).m16n16k16(|.global).{w} [A], $v, 16 | w/v=f16/b32#4 f32/f32#8 s32/s32#8
wmma.store.d.sync.aligned.row.m16n16k8.f32 [A], $f32#8, 16
wmma.store.d.sync.aligned.row.m8n8k4.f64 [A], $f64#2, 8
wmma.store.d.sync.aligned.row.(m8n8k32|m8n8k128).s32 [A], $s32#2, 8
wmma.mma.sync.aligned.row.col.(m16n16k16|m8n32k16|m32n8k16).f32.f32 $f32#8, $b32#8, $b32#8, $f32#8
wmma.mma.sync.aligned.row.col.m16n16k16.f16.f16 $b32#4, $b32#8, $b32#8, $b32#4
wmma.mma.sync.aligned.col.row.m16n16k16.f32.f16 $f32#8, $b32#8, $b32#8, $b32#4
wmma.mma.sync.aligned.row.col.m16n16k16(|.satfinite).s32.(s8|u8).(s8|u8).s32 $s32#8, $b32#2, $b32#2, $s32#8
wmma.mma.sync.aligned.row.col.m16n16k16.f32.bf16.bf16.f32 $f32#8, $b32#4, $b32#4, $f32#8
wmma.mma.sync.aligned.row.col.m16n16k8.f32.tf32.tf32.f32 $f32#8, $b32#4, $b32#4, $f32#8
wmma.mma.sync.aligned.row.col.m8n8k4(|.rn|.rz).f64.f64.f64.f64 $f64#2, $f64#1, $f64#1, $f64#2
wmma.mma.sync.aligned.row.col.m8n8k32(|.satfinite).s32.(s4|u4).(s4|u4).s32 $s32#2, $b32#1, $b32#1, $s32#2
wmma.mma.(xor|and).popc.sync.aligned.row.col.m8n8k128.s32.b1.b1.s32 $s32#2, $b32#1, $b32#1, $s32#2
# memory
(ld|ld.global|ld.volatile.global|ld.relaxed.gpu.global|ld.acquire.sys.global|ld.weak.global|ld.global.nc\
|ldu.global|ld.global.ca|ld.global.cg|ld.global.cs|ld.global.lu|ld.global.cv).{t} $t, [G]\
 | t=b8 u8 s8 b16 u16 s16 b32 u32 s32 b64 u64 s64 f32 f64
ld.global.v2.{t} $t#2, [G] | t=b8 u16 b32 u64 f32 f64
ld.global.v4.{t} $t#4, [G] | t=b8 u16 b32 f32
ld.global.v4.{t} $t#4, [G] | t=b64 f64 u64
ld.global(|.nc).v8.{t} $t#8, [G] | t=b32 f32 u32
ld.global.L2::cache_hint.v4.u32 $u32#4, [G], $b64
ld.global(|.L1::evict_first|.L1::evict_last|.L1::no_allocate|.L1::evict_normal|.L1::evict_unchanged)(|.L2::64B\
|.L2::128B|.L2::256B).b32 $b32, [G]
ld.global.L1::no_allocate.L2::256B.v4.b32 $b32#4, [G]
ld.global(.L2::evict_first|.L2::evict_last|.L2::evict_normal).v8.b32 $b32#8, [G]
ld(|.relaxed.gpu|.acquire.gpu|.weak).global.b128 $b128, [G]
(ld.shared|ld.shared::cta|ld.volatile.shared|ld.relaxed.cta.shared).{t} $t, [S] | t=b8 u16 s32 b64 f32
ld.shared::cluster.b32 $b32, [S]
ld.shared.v4.b32 $b32#4, [S]
ld.(acquire|relaxed).cluster.global.b32 $b32, [G]
ld.const.b32 $b32, [table]
ld.param(|::entry).b32 $b32, [number]
ld.local.b32 $b32, [frame]
st.local.b32 [frame], $b32
(st|st.global|st.volatile.global|st.relaxed.gpu.global|st.release.sys.global|st.weak.global|st.global.wb\
|st.global.cg|st.global.cs|st.global.wt).{t} [G], $t | t=b8 u8 s8 b16 u16 b32 u32 s32 b64 u64 f32 f64
st.global.v2.{t} [G], $t#2 | t=b8 u16 b32 b64 f32 f64
st.global.v4.{t} [G], $t#4 | t=b8 u16 b32 f32
st.global.v4.{t} [G], $t#4 | t=b64 f64
st.global.v8.{t} [G], $t#8 | t=b32 f32
st.global.L2::cache_hint.b32 [G], $b32, $b64
st.global(.L1::evict_first|.L1::no_allocate).b32 [G], $b32
st(|.relaxed.gpu|.release.gpu).global.b128 [G], $b128
(st.shared|st.shared::cta|st.volatile.shared|st.release.cta.shared).{t} [S], $t | t=b8 u16 s32 b64 f32
st.shared::cluster.b32 [S], $b32
prefetch(|.global|.local).(L1|L2) [A]
prefetch.global.(L2::evict_last|L2::evict_normal) [G]
prefetchu.L1 [A]
applypriority(|.global).L2::evict_normal [G], 128
discard(|.global).L2 [G], 128
createpolicy.fractional.L2::(evict_last|evict_normal|evict_first|evict_unchanged).b64 $b64, 1.0
createpolicy.fractional.L2::evict_last.L2::evict_first.b64 $b64, 0.5
createpolicy.fractional.L2::evict_last.b64 $b64
createpolicy.range.global.L2::evict_last.L2::evict_first.b64 $b64, [G], $b32, $b32
createpolicy.cvt.L2.b64 $b64, 0x8000000000000000
isspacep.(global|shared|local|const|shared::cta|shared::cluster|param) $pred, $b64
cvta(|.to).(global|shared|local|const|shared::cta|param).u64 $u64, $u64
cvta.shared::cluster.u64 $u64, $u64
istypep.texref $pred, $b64
mapa.shared::cluster.u32 $u32, $u32, $u32
getctarank.shared::cluster.u32 $u32, $u32
# atomics
atom.global.(add|min|max|inc|dec).u32 $u32, [G], $u32
atom.global.(add|min|max).s32 $s32, [G], $s32
atom.global.(and|or|xor|exch).b32 $b32, [G], $b32
atom.global.(add|min|max).u64 $u64, [G], $u64
atom.global.(min|max).s64 $s64, [G], $s64
atom.global.(and|or|xor|exch).b64 $b64, [G], $b64
atom.global.cas.{t} $t, [G], $t, $t | t=b16 b32 b64 b128
atom.global.exch.b128 $b128, [G], $b128
atom(.relaxed|.acquire|.release|.acq_rel|)(|.cta|.gpu|.sys).global.add.u32 $u32, [G], $u32
atom.acq_rel.cluster.global.add.u32 $u32, [G], $u32
(atom.shared|atom.shared::cta|atom).add.u32 $u32, [S], $u32
atom.shared.cas.{t} $t, [S], $t, $t | t=b16 b32 b64
atom.global.add.f32 $f32, [G], $f32
atom.global.add.f64 $f64, [G], $f64
atom.global.add.noftz.{t} $t, [G], $t | t=f16 f16x2 bf16 bf16x2
atom.global.(min|max).noftz.{t} $t, [G], $t | t=f16 f16x2 bf16 bf16x2
atom.global.{w}.add.f32 $v, [G], $v | w/v=v2/f32#2 v4/f32#4
atom.global.v2.(add|min|max).noftz.(f16x2|bf16x2) $b32#2, [G], $b32#2
atom.global.v4.(add|min).noftz.(f16|bf16) $b16#4, [G], $b16#4
atom.global.L2::cache_hint.add.u32 $u32, [G], $u32, $b64
red.global.(add|min|max|inc|dec).u32 [G], $u32
red.global.(add|min|max).s32 [G], $s32
red.global.(and|or|xor).b32 [G], $b32
red.global.(add|min|max).u64 [G], $u64
red.global.(min|max).s64 [G], $s64
red.global.(and|or|xor).b64 [G], $b64
red.(relaxed|release).gpu.global.add.u32 [G], $u32
red(.shared|.shared::cta|).add.u32 [S], $u32
red.global.add.{t} [G], $t | t=f32 f64
red.global.add.noftz.{t} [G], $t | t=f16 f16x2 bf16 bf16x2
red.global.(min|max).noftz.{t} [G], $t | t=f16 f16x2 bf16 bf16x2
red.global.{w}.add.f32 [G], $v | w/v=v2/f32#2 v4/f32#4
red.global.v8.add.noftz.f16 [G], $b16#8
red.global.v2.add.noftz.(f16x2|bf16x2) [G], $b32#2
red.global.L2::cache_hint.add.u32 [G], $u32, $b64
# asynchronous copies
cp.async.ca.shared(|::cta).global(|.L2::64B|.L2::128B|.L2::256B) [S], [G], 4
cp.async.ca.shared.global [S], [G], (8|16)
cp.async.cg.shared.global(|.L2::128B) [S], [G], 16
cp.async.cg.shared.global [S], [G], 16, (4|$b32|$pred)
cp.async.ca.shared.global.L2::cache_hint [S], [G], 16, $b64
cp.async.ca.shared.global.L2::cache_hint [S], [G], 16, $b32, $b64
cp.async.commit_group
cp.async.wait_group 2
cp.async.wait_all
cp.async.mbarrier.arrive(|.noinc)(|.shared).b64 [S]
# barriers and fences
bar.sync 0
bar.sync $b32
bar.sync 1, 64
bar.sync $b32, $b32
bar.arrive 1, 64
bar.red.popc.u32 $u32, 0, $pred
bar.red.(and|or).pred $pred, 1, 64, !$pred
bar.cta.sync 0
(barrier|barrier.cta).sync(|.aligned) 0
(barrier|barrier.cta).arrive(|.aligned) 1, 64
(barrier|barrier.cta).red.popc(|.aligned).u32 $u32, 0, $pred
barrier.cluster.arrive(|.release|.relaxed)(|.aligned)
barrier.cluster.wait(|.acquire)(|.aligned)
bar.warp.sync -1
bar.warp.sync $b32
membar.(cta|gl|sys)
fence(|.sc|.acq_rel).(cta|gpu|sys)
fence(|.sc|.acq_rel).cluster
fence.(acquire|release).gpu
fence.mbarrier_init.release.cluster
fence.proxy.(alias|async|async.global|async.shared::cta)
fence.acquire.sync_restrict::shared::cluster.cluster
fence.release.sync_restrict::shared::cta.cluster
nanosleep.u32 (100|$u32)
griddepcontrol.(launch_dependents|wait)
mbarrier.init(|.shared|.shared::cta).b64 [S], 1
mbarrier.inval(|.shared).b64 [S]
mbarrier.arrive(|.shared|.shared::cta).b64 $b64, [S]
mbarrier.arrive.shared.b64 $b64, [S], 2
mbarrier.arrive.release.cta.shared::cta.b64 $b64, [S]
mbarrier.arrive.noComplete.shared.b64 $b64, [S], 1
mbarrier.arrive_drop.shared.b64 $b64, [S]
mbarrier.arrive_drop.noComplete.shared.b64 $b64, [S], 1
mbarrier.arrive.expect_tx.shared.b64 $b64, [S], $b32
mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [S], $b32
mbarrier.arrive.shared::cluster.b64 _, [S]
mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [S], $b32
mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [S], $b32
mbarrier.test_wait.shared.b64 $pred, [S], $b64
mbarrier.test_wait.parity.shared.b64 $pred, [S], $b32
mbarrier.test_wait.acquire.cta.shared::cta.b64 $pred, [S], $b64
mbarrier.try_wait.shared.b64 $pred, [S], $b64
mbarrier.try_wait.parity.shared.b64 $pred, [S], $b32
mbarrier.try_wait.parity.shared::cta.b64 $pred, [S], $b32, 1000
mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 $pred, [S], $b32
mbarrier.pending_count.b64 $b32, $b64
# control
bra L
bra.uni L
@$pred bra L
@!$pred exit
exit
ret
ret.uni
trap
brkpt
pmevent 1
pmevent.mask 3
setmaxnreg.(inc|dec).sync.aligned.u32 64
"""

REGISTERS = {
    "pred": "%p", "b8": "%c", "u8": "%c", "s8": "%c", "b16": "%h", "u16": "%h", "s16": "%h", "f16": "%h", "bf16": "%h",
    "b32": "%r", "u32": "%r", "s32": "%r", "f16x2": "%r", "bf16x2": "%r", "f32": "%f", "b64": "%d", "u64": "%d",
    "s64": "%d", "f64": "%g", "b128": "%q",
}  # fmt: skip


def expand(template: str) -> Iterator[str]:
    """Every instruction that a line of FORMS stands for, without the semicolon."""
    head, _, tail = template.partition(" | ")
    choices = [part.split("=", 1) for part in tail.split(" ; ") if part]
    for values in itertools.product(*(words.split() for _, words in choices)):
        text = head
        for (names, _), value in zip(choices, values, strict=True):
            for name, word in zip(names.split("/"), value.split("/"), strict=True):
                text = re.sub(rf"\{{{name}\}}|(?<=\$){name}\b", word, text)
        yield from map(_with_registers, _alternatives(text))


def _alternatives(text: str) -> Iterator[str]:
    found = re.search(r"\(([^()]*\|[^()]*)\)", text)
    if not found:
        yield text
        return
    for choice in found[1].split("|"):
        yield from _alternatives(text[: found.start()] + choice + text[found.end() :])


def _with_registers(text: str) -> str:
    """Each `$type` becomes a register of its own."""
    counts: Counter[str] = Counter()

    def register(kind: str) -> str:
        prefix = REGISTERS[kind]
        counts[prefix] += 1
        return f"{prefix}{counts[prefix]}"

    def operand(found: re.Match[str]) -> str:
        kind, double, count = found[1], found[2], found[3]
        if double:
            kind = "b" + {"16": "32", "32": "64"}[kind[1:]]
        if count:
            return "{" + ", ".join(register(kind) for _ in range(int(count))) + "}"
        return register(kind)

    text = re.sub(r"\$(\w+)(\*2)?(?:#(\d+))?", operand, text)
    for letter, address in ADDRESSES.items():
        text = text.replace(f"[{letter}]", f"[{address}]")
    return text


ADDRESSES = {"G": "%d31", "S": "%r31", "A": "%d30"}


def instructions() -> list[str]:
    lines = [line for line in FORMS.replace("\\\n", "").splitlines() if line and not line.startswith("#")]
    return list(dict.fromkeys(instruction for line in lines for instruction in expand(line)))
