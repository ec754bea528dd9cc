/**
 * Where tensors may lie outside of their backend's memory, somebody has to bring them back before they are used, and to
 * make room. Kept apart from `offload`, which does so, so that a program without it bundles nothing of it.
 */

import type { DType } from '../tensor/dtype.ts'
import type { Backend, BackendBuffer, View } from './backend.ts'
import type { Call } from './call.ts'

/** Who keeps tensors outside of memory. */
export interface Paging {
  /** Takes memory as `Backend.alloc` does, and makes room for it. */
  alloc(backend: Backend, bytes: number, dtype: DType): BackendBuffer
  /** A buffer is given back for good; false if it has no memory any more. */
  freed(buffer: BackendBuffer): boolean
  /** Brings what the host is about to read or write into memory. */
  bring(backend: Backend, view: View): void
  /** Runs a kernel with everything that it touches in memory. */
  launch(call: Call, go: () => void): void
  /** Would a call that touches so many bytes leave too little room for others? */
  isLarge(bytes: number): boolean
}

let pager: Paging | null = null

/** Who keeps tensors outside of memory, or null: none is outside, and none has to go. */
export const paging = (): Paging | null => pager

/** Says who keeps tensors outside of memory from now on. */
export function setPaging(next: Paging | null): void {
  pager = next
}
