/** Little-endian and LEB128 encoding, the two number formats of the WebAssembly binary format. */

/** Appends `value` (0 … 2³² − 1) as unsigned LEB128. */
export function pushUnsigned(out: number[], value: number): void {
  let rest = value >>> 0
  while (rest >= 0x80) {
    out.push((rest & 0x7f) | 0x80)
    rest >>>= 7
  }
  out.push(rest)
}

/** Appends a 32-bit integer as signed LEB128; values up to 2³² − 1 (addresses) wrap to their 32 bits. */
export function pushSigned32(out: number[], value: number): void {
  let rest = value | 0
  while (rest < -0x40 || rest > 0x3f) {
    out.push((rest & 0x7f) | 0x80)
    rest >>= 7
  }
  out.push(rest & 0x7f)
}

/** Appends a 64-bit integer as signed LEB128; values up to 2⁶⁴ − 1 wrap to their 64 bits. */
export function pushSigned64(out: number[], value: bigint): void {
  let rest = BigInt.asIntN(64, value)
  while (rest < -0x40n || rest > 0x3fn) {
    out.push(Number(rest & 0x7fn) | 0x80)
    rest >>= 7n
  }
  out.push(Number(rest & 0x7fn))
}

/** Appends every byte of `bytes`. (Not `push(...bytes)`: large bodies would overflow the stack.) */
export function pushAll(out: number[], bytes: ArrayLike<number>): void {
  for (let i = 0; i < bytes.length; i++) out.push(bytes[i] as number)
}

/** Appends a UTF-8 string with its length in front. */
export function pushName(out: number[], name: string): void {
  const utf8 = new TextEncoder().encode(name)
  pushUnsigned(out, utf8.length)
  pushAll(out, utf8)
}

/** Appends a section: its id, its length in bytes, its content. */
export function pushSection(out: number[], id: number, content: readonly number[]): void {
  out.push(id)
  pushUnsigned(out, content.length)
  pushAll(out, content)
}

const scratch = new DataView(new ArrayBuffer(16))
const scratchBytes = new Uint8Array(scratch.buffer)

/** The bytes of up to 16 bytes of lanes, written by `write` into a little-endian view. */
export function laneBytes(length: number, write: (view: DataView) => void): number[] {
  write(scratch)
  return Array.from(scratchBytes.subarray(0, length))
}
