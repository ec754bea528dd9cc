/**
 * What bundles for browsers get in place of `tuning.ts`: tiles are measured where V8 pairs instructions, which it cannot be
 * asked to do there.
 */

import type { Engine } from '../../engine.ts'
import { type Tile, tileFor } from './micro.ts'

/** The tile for large products. */
export const tunedTile = ({ features }: Engine): Tile => tileFor(features)
