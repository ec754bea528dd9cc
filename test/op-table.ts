import './ops/elementwise.ts'
import './ops/recurrent.ts'
import './ops/reductions.ts'
import './ops/shapes.ts'
import './ops/layers.ts'
import './ops/more.ts'
import './ops/conv.ts'
import './ops/losses.ts'
import { type Row, rows } from './ops/row.ts'

/** One row per operator, and per way of calling it that needs another expectation; see `Row`. */
export const table: readonly Row[] = rows
export type { Row }
